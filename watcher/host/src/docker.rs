//! Docker: whatever daemon the client reaches. It cannot ignore the volumes that an image declares, which can put files
//! of the image in place of ours by a link: so images that declare any are refused, and the mount proof stands behind.
//! There is no guard between it and its runtime: it makes no annotations of what an image says.

use crate::calls::{CALL_LIMIT, CallError, Calls};
use crate::container::{POD_LABEL, ROLE_LABEL, Spec};
use crate::engine::{Engine, Image};
use crate::failure::{Context, Failure, failure};
use crate::machine::swap_is_counted;
use crate::mountinfo::unescaped;
use crate::place::Place;
use crate::search_path::in_path;
use latebind_contract::mounts;
use nix::sys::stat::{major, minor};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use watcher::bind::{self, Reason};

/// Most lines of a container's log that are asked for.
const LOG_LINES: &str = "5";

/// Docker.
#[derive(Debug)]
pub struct Docker {
    calls: Calls,
    place: Place,
    swap_is_counted: bool,
}

impl Docker {
    /// Finds docker, and demands that its daemon answers.
    pub fn open(place: Place) -> Result<Self, Failure> {
        let program = in_path("docker").ok_or_else(|| failure("docker is not installed: apt-get install docker.io"))?;
        let calls = Calls::new(program, place.run().to_owned());
        calls
            .call(&["version", "--format={{.Server.Version}}"], CALL_LIMIT)
            .context(|| "docker cannot be used".into())?;
        Ok(Self { calls, swap_is_counted: swap_is_counted(), place })
    }

    /// Docker has no option for a file with the number of a container's main process.
    fn note_process(&self, name: &str, pidfile: &Path) -> Result<(), CallError> {
        let said = self.calls.call(&["container", "inspect", "--format={{.State.Pid}}", name], CALL_LIMIT)?;
        match said.trim() {
            "0" | "" => Ok(()),
            pid => fs::write(pidfile, pid).map_err(CallError::Broken),
        }
    }
}

impl Engine for Docker {
    fn place(&self) -> &Place {
        &self.place
    }

    fn calls(&self) -> &Calls {
        &self.calls
    }

    fn options(&self, spec: &Spec) -> Result<Vec<String>, Failure> {
        let mut options = spec.options(self.swap_is_counted);
        options.push("--init=false".into());
        // A UTS namespace cannot be shared: each has one with the pod's name. With another's network that is its name.
        if spec.namespaces.hostname.is_none() && !spec.namespaces.network.starts_with("container:") {
            options.push(format!("--hostname={}", spec.pod));
        }
        match &spec.log {
            Some(_) => options.extend(["--log-driver=json-file".into(), "--log-opt=max-size=1m".into()]),
            None => options.push("--log-driver=none".into()),
        }
        for mount in &spec.mounts {
            let mut fields = mount.fields()?;
            fields.extend(mount.read_only.then(|| "readonly".to_owned()));
            options.push(format!("--mount={}", fields.join(",")));
        }
        let mut words = spec.entrypoint.iter();
        options.extend(words.next().map(|program| format!("--entrypoint={program}")));
        options.push(spec.image.clone());
        options.extend(words.chain(&spec.arguments).cloned());
        Ok(options)
    }

    fn listing(&self) -> String {
        format!("{{{{.Label \"{POD_LABEL}\"}}}} {{{{.Label \"{ROLE_LABEL}\"}}}} {{{{.State}}}}")
    }

    /// The volumes without a name that it has made go with it.
    fn removal(&self) -> &'static [&'static str] {
        &["rm", "--force", "--volumes"]
    }

    fn has_image(&self, name: &str) -> Result<bool, CallError> {
        match self.calls.call(&["image", "inspect", "--format={{.Id}}", name], CALL_LIMIT) {
            Ok(_) => Ok(true),
            // No name of an image has blanks.
            Err(CallError::Failed { code: Some(1), text }) if text.contains("No such image") => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn check_image(&self, name: &str, image: &Image) -> Result<(), bind::Failure> {
        let volumes = image.metadata.volumes();
        if volumes.is_empty() {
            return Ok(());
        }
        let message = format!(
            "{name} declares the volumes {}, which docker would mount, wherever links of the image lead: build it \
             without VOLUME, or run it with --engine podman, which ignores them",
            volumes.join(", ")
        );
        Err(bind::Failure::hold(Reason::ImageControlsEngine, message))
    }

    /// What it has mounted has to be what this program sees: a daemon in another mount namespace, or on another
    /// machine, has directories of its own at the same paths.
    fn check_started(&self, spec: &Spec) -> Result<(), CallError> {
        self.note_process(&spec.name(), &spec.pidfile)?;
        check_mounts(spec).map_err(|why| CallError::Broken(io::Error::other(why)))
    }

    fn look_for_process(&self, spec: &Spec) {
        if !spec.pidfile.exists()
            && let Err(e) = self.note_process(&spec.name(), &spec.pidfile)
        {
            tracing::debug!(container = spec.name(), "no process yet: {e}");
        }
    }

    fn log(&self, spec: &Spec) -> Vec<String> {
        let said = self.calls.call_to_end(&["logs", "--tail", LOG_LINES, &spec.name()], CALL_LIMIT);
        said.unwrap_or_default().lines().map(str::to_owned).collect()
    }
}

fn check_mounts(spec: &Spec) -> Result<(), String> {
    let Ok(pid) = fs::read_to_string(&spec.pidfile) else { return Ok(()) };
    let path = format!("/proc/{}/mountinfo", pid.trim());
    // One that has ended already shows nothing.
    let mounted = mounts::parse(&fs::read_to_string(path).unwrap_or_default())?;
    for mount in &spec.mounts {
        let source = mount.source.display();
        let own = fs::metadata(&mount.source).map_err(|e| format!("{source}: {e}"))?.dev();
        let own = format!("{}:{}", major(own), minor(own));
        if let Some(other) = mounted.iter().rfind(|m| unescaped(&m.point) == mount.target && m.device != own) {
            return Err(format!(
                "docker has mounted {source} from device {}, where this program sees {own}: its daemon has to run on \
                 this machine and in this mount namespace",
                other.device
            ));
        }
    }
    Ok(())
}
