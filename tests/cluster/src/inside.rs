//! The pod as its node sees it: volumes and processes, also while API server or kubelet are away.

use std::path::PathBuf;

use latebind_tests::pod::eventually;
use serde_json::Value;

use crate::access::cluster;
use crate::pilot::{JOB_WITHIN, Pilot, shell};

/// Waits on the node itself until the file `$1` says that its phase is `$2`, for `$3` seconds; else prints what it says.
/// Some phases last for a few milliseconds, and the way to the node may be long.
const REACHES: &str = r#"
look() { while IFS= read -r line; do case $line in '  "phase": '*) phase=$line ;; esac; done <"$1"; }
end=$(($(date +%s) + $3))
while :; do
    for n in 0 1 2 3 4 5 6 7 8 9; do
        phase=
        { look "$1"; } 2>/dev/null
        case $phase in *"\"$2\""*) exit 0 ;; esac
        sleep 0.001
    done
    [ "$(date +%s)" -lt "$end" ] || { echo "$phase"; exit 1; }
done
"#;

/// A job that runs until it is [let go](Inside::let_go); its stdout says how often it was started, and whether it came
/// to its end.
pub fn until_let_go() -> Value {
    shell("echo begun; until [ -e go ]; do sleep 0.1; done; echo ended")
}

/// The inside of one pod: of this one, and not of a successor that has its name.
pub struct Inside {
    uid: String,
    volumes: PathBuf,
}

impl Pilot {
    /// The inside of the pod that is there now.
    #[track_caller]
    pub fn inside(&self) -> Inside {
        let uid = self.object()["metadata"]["uid"].as_str().expect("a pod has a UID").to_owned();
        Inside { volumes: cluster().node().pods().join(&uid).join("volumes/kubernetes.io~empty-dir"), uid }
    }
}

impl Inside {
    /// A file in one of the pod's emptyDirs, on the node.
    fn file(&self, volume: &str, file: &str) -> String {
        self.volumes.join(volume).join(file).display().to_string()
    }

    /// What a file in one of the pod's emptyDirs has; nothing where there is none.
    fn read(&self, volume: &str, file: &str) -> Vec<u8> {
        cluster().node().shell().call("cat \"$1\"", &[&self.file(volume, file)], Vec::new()).stdout
    }

    /// Writes a file into one of the pod's emptyDirs, as root of the node.
    #[track_caller]
    pub fn write(&self, volume: &str, file: &str, text: &str) {
        cluster().node().shell().ask_with_input("cat >\"$1\"", &[&self.file(volume, file)], text.into());
    }

    /// Lets a job of [`until_let_go`] in this slot end.
    #[track_caller]
    pub fn let_go(&self, slot: u32) {
        self.write(&format!("data-{slot}"), "work/go", "");
    }

    /// What glue says of itself in a slot; null where there is nothing.
    pub fn glue(&self, slot: u32) -> Value {
        serde_json::from_slice(&self.read(&format!("ctl-{slot}"), "status.json")).unwrap_or_default()
    }

    /// The phase of an attempt (`NAME.1`), as the watcher has written it down.
    pub fn phase(&self, attempt: &str) -> Option<String> {
        let bytes = self.read("private", &format!("jobs/{attempt}.json"));
        serde_json::from_slice::<Value>(&bytes).ok()?["phase"].as_str().map(str::to_owned)
    }

    /// Waits until an attempt has come to this phase.
    #[track_caller]
    pub fn reaches(&self, attempt: &str, phase: &str) {
        let file = self.file("private", &format!("jobs/{attempt}.json"));
        let (seconds, longer) = (JOB_WITHIN.as_secs().to_string(), JOB_WITHIN * 2);
        let ran = cluster().node().shell().call_within(REACHES, &[&file, phase, &seconds], Vec::new(), longer);
        let (now, trouble) = (ran.out(), ran.err());
        assert_eq!(ran.code, Some(0), "not within {JOB_WITHIN:?}: {attempt} is {phase}; it is {now:?}{trouble}");
    }

    /// Waits until the program of an attempt runs; returns its process ID on the node.
    #[track_caller]
    pub fn runs(&self, attempt: &str, slot: u32) -> i32 {
        eventually(&format!("{attempt} runs"), JOB_WITHIN, || {
            let glue = self.glue(slot);
            let main = glue["main_pid"].as_i64().filter(|_| glue["job"] == attempt && glue["phase"] == "running")?;
            self.process(main)
        })
    }

    /// The process that has this ID in the pod's PID namespace, on the node.
    pub fn process(&self, inner: i64) -> Option<i32> {
        cluster().node().process_of_pod(&self.uid, inner)
    }
}
