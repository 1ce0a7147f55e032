//! An admission webhook that refuses images, or puts others in their place. It is on this machine, so the API server
//! has to be here too.

use latebind_cluster_tests::admission::{Ruling, Webhook};
use latebind_cluster_tests::pilot::{Options, Pilot};
use latebind_cluster_tests::{cluster, needs};
use serde_json::{Value, json};

const AT_ONCE: f64 = 10.0;

fn hello(image: &str) -> Value {
    json!({"image": image, "argv": ["/probe", "hello"]})
}

#[track_caller]
fn the_next_job_runs(pilot: &Pilot, after: &str) {
    let outcome = pilot.job(&format!("after-{after}"), &hello(&cluster().image("busybox")));
    assert_eq!(outcome.class(), ("final", "Completed"), "after {after}: {:#?}", outcome.report);
}

/// A pilot that tries each job once, in a namespace whose pods are judged.
fn judged(judge: impl Fn(&str) -> Ruling + Send + Sync + 'static) -> (Webhook, Pilot) {
    let pilot = Options::new().spool(&["--max-attempts", "1"]).start();
    (Webhook::start(&pilot.namespace, judge), pilot)
}

#[test]
fn an_image_that_the_cluster_refuses() {
    needs("1.20 or later; node, loopback");
    let words = "images of debian cannot be used here: ask for busybox";
    let (webhook, pilot) = judged(move |image| match image.contains("/debian:") {
        true => Ruling::Deny(words.into()),
        false => Ruling::Allow,
    });
    let outcome = pilot.job("refused", &hello(&cluster().image("debian")));
    outcome.is("hold", "ImageNotAllowed");
    let report = &outcome.report;
    assert!(report.message.contains(words) && report.message.contains("images.latebind.dev"), "{report:#?}");
    assert!(report.record.is_none() && report.container.is_none() && report.durations.bind < AT_ONCE, "{report:#?}");
    the_next_job_runs(&pilot, "refused");
    assert!(webhook.asked().contains(&cluster().image("debian")));
}

#[test]
fn an_image_that_the_cluster_exchanges() {
    needs("1.20 or later; node, loopback, registries");
    let mirror = |image: &str| image.replace("127.0.0.1:", "localhost:");
    let wrong = cluster().image("debian");
    let (webhook, pilot) = judged(move |image| match image {
        _ if image.contains("/stopsignal-winch:") => Ruling::Replace(mirror(image)),
        _ if image.contains("/noshell:1") => Ruling::Replace(wrong.clone()),
        _ => Ruling::Allow,
    });
    // The same content from elsewhere is what was asked for.
    let outcome = pilot.job("mirrored", &hello(&cluster().image_by_digest("stopsignal-winch", "1")));
    outcome.is_good();
    let container = outcome.report.container.as_ref().unwrap();
    assert!(container.image_id.ends_with(&cluster().digest("stopsignal-winch")), "{container:#?}");
    assert!(container.reference.starts_with("localhost:"), "{container:#?}");
    the_next_job_runs(&pilot, "mirrored");

    // What a tag stands for elsewhere nobody knows: the job gets no container, and no glue gets the job.
    let outcome = pilot.job("exchanged", &hello(&cluster().image("noshell")));
    outcome.is("hold", "ImageRewritten");
    let report = &outcome.report;
    assert!(report.message.contains(&cluster().image("debian")), "{report:#?}");
    assert!(report.record.is_none() && !report.verified && report.container.is_none(), "{report:#?}");
    assert!(report.durations.start == 0.0 && report.durations.bind < AT_ONCE, "{report:#?}");
    the_next_job_runs(&pilot, "exchanged");
    assert!(webhook.asked().iter().any(|image| image.starts_with("127.0.0.1:")), "{:?}", webhook.asked());
}
