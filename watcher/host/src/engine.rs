//! What a pod needs of a container engine. The programs of the engines that there are speak nearly one language: what
//! is common is here, and an engine says what it has of its own.

use crate::calls::{CALL_LIMIT, CallError, Calls, PULL_LIMIT};
use crate::container::{POD_LABEL, Spec, container_name};
use crate::failure::{Context, Failure, failure};
use crate::metadata::Metadata;
use crate::place::Place;
use serde::Deserialize;
use std::fmt::Debug;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use watcher::bind;

/// Keys that nobody types one after the other: docker has no way to say "none".
const NO_KEYS: &str = "ctrl-^,ctrl-@,ctrl-^,ctrl-@,ctrl-^";

/// What an engine says of an image.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Image {
    /// The digest of its configuration, with or without `sha256:`.
    pub id: String,
    /// What it is made for, as image configurations name it.
    pub architecture: String,
    /// See `architecture`.
    pub os: String,
    /// What it says beside its files.
    #[serde(flatten)]
    pub metadata: Metadata,
}

/// What an engine says of a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ContainerState {
    /// One word of the engine's.
    pub status: String,
    /// Whether its main process runs.
    pub running: bool,
    /// Of its main process.
    pub exit_code: i32,
    /// Whether the kernel ended it for memory.
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
}

/// A container engine, on a storage and with a configuration of this program's own.
pub trait Engine: Debug + Send + Sync {
    /// Where everything lies.
    fn place(&self) -> &Place;

    /// Its program.
    fn calls(&self) -> &Calls;

    /// What `create` and `run` are given for a container, image and arguments included.
    fn options(&self, spec: &Spec) -> Result<Vec<String>, Failure>;

    /// How `ps` is asked for pod, role and state of a container, separated by blanks.
    fn listing(&self) -> String;

    /// The subcommand that removes containers, running or not, with whatever needs them.
    fn removal(&self) -> &'static [&'static str];

    /// The subcommand that starts a container and shows what it says.
    fn attaching(&self) -> &'static [&'static str] {
        &["start", "--attach"]
    }

    /// The directory of the image index, where there is one by which answers about images can be remembered.
    fn images_root(&self) -> Option<PathBuf> {
        None
    }

    /// Demands that an image, which is here, cannot decide what is mounted where.
    fn check_image(&self, _name: &str, _image: &Image) -> Result<(), bind::Failure> {
        Ok(())
    }

    /// What a container has said last, line by line.
    fn log(&self, spec: &Spec) -> Vec<String>;

    /// Looks for the main process of a container that is being started, where the engine writes no file with its
    /// number.
    fn look_for_process(&self, _spec: &Spec) {}

    /// Demands that a container that was started is what was asked for.
    fn check_started(&self, _spec: &Spec) -> Result<(), CallError> {
        Ok(())
    }

    /// What is said of images, all of which have to be there.
    fn images(&self, names: &[&str]) -> Result<Vec<Image>, CallError> {
        let call: Vec<&str> = ["image", "inspect"].into_iter().chain(names.iter().copied()).collect();
        parsed(&self.calls().call(&call, CALL_LIMIT)?)
    }

    /// Whether there is such an image.
    fn has_image(&self, name: &str) -> Result<bool, CallError> {
        match self.calls().call(&["image", "exists", name], CALL_LIMIT) {
            Ok(_) => Ok(true),
            Err(CallError::Failed { code: Some(1), .. }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// What is said of an image; `None` where it is not here.
    fn image(&self, name: &str) -> Result<Option<Image>, CallError> {
        match self.images(&[name]) {
            Ok(mut images) => Ok(images.pop()),
            // Its exit code says whether there is such an image; an error's text holds the name.
            Err(e @ CallError::Failed { code: Some(_), .. }) => match self.has_image(name) {
                Ok(false) => Ok(None),
                _ => Err(e),
            },
            Err(e) => Err(e),
        }
    }

    /// Fetches an image; with `progress` the user sees what the engine says.
    fn pull(&self, name: &str, progress: bool) -> Result<(), CallError> {
        let done = match progress {
            true => self.calls().call_with_progress(&["pull", name], PULL_LIMIT),
            false => self.calls().call(&["pull", "--quiet", name], PULL_LIMIT),
        };
        done.map(drop)
    }

    /// Makes a container and does not start it; says its ID.
    fn create(&self, spec: &Spec) -> Result<String, CallError> {
        self.make(&["create"], spec, CALL_LIMIT)
    }

    /// Makes a container and starts it; says its ID.
    fn start(&self, spec: &Spec, limit: Duration) -> Result<String, CallError> {
        let id = self.make(&["run", "--detach"], spec, limit)?;
        self.check_started(spec).map(|()| id)
    }

    /// Makes a container and runs it to its end, which has to be a good one.
    fn run(&self, spec: &Spec) -> Result<(), CallError> {
        self.make(&["run"], spec, CALL_LIMIT).map(drop)
    }

    /// See [`Engine::create`].
    fn make(&self, verb: &[&str], spec: &Spec, limit: Duration) -> Result<String, CallError> {
        let options = self.options(spec).map_err(|e| CallError::Broken(std::io::Error::other(e.to_string())))?;
        let call: Vec<&str> = verb.iter().copied().chain(options.iter().map(String::as_str)).collect();
        Ok(self.calls().call(&call, limit)?.trim().to_owned())
    }

    /// Starts a container that was made, and ends with it: its streams are the caller's. One that has a terminal sets
    /// the caller's, and so is not put into a process group of its own.
    fn attach(&self, name: &str, interactive: bool, terminal: bool) -> Command {
        let mut command = if terminal { self.calls().beside() } else { self.calls().apart() };
        command.args(self.attaching());
        // Nobody can leave a command behind: the pod goes with its pilot.
        command.args(terminal.then(|| format!("--detach-keys={NO_KEYS}")));
        command.args(interactive.then_some("--interactive")).arg(name);
        command
    }

    /// What is said of a container; `None` where there is none.
    fn state(&self, container: &str) -> Result<Option<ContainerState>, CallError> {
        match self.calls().call(&["container", "inspect", "--format={{json .State}}", container], CALL_LIMIT) {
            Ok(text) => parsed(&text).map(Some),
            Err(CallError::Failed { code: Some(_), text }) if is_missing(&text) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Each pod that has containers, and for each container its role and state.
    fn list(&self) -> Result<Vec<(String, String)>, Failure> {
        let (filter, format) = (format!("--filter=label={POD_LABEL}"), format!("--format={}", self.listing()));
        let call = ["ps", "--all", &filter, &format];
        let text = self.calls().call(&call, CALL_LIMIT).context(|| "cannot list containers".into())?;
        Ok(text.lines().filter_map(|line| line.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect())
    }

    /// Kills a container's processes, where there is such a container.
    fn kill(&self, name: &str) {
        if let Err(e) = self.calls().call_to_end(&["kill", "--signal", "KILL", name], CALL_LIMIT) {
            tracing::debug!(container = name, "not killed: {e}");
        }
    }

    /// Removes a container, running or not, where there is such a one.
    fn remove(&self, name: &str) -> Result<(), CallError> {
        let call: Vec<&str> = self.removal().iter().copied().chain([name]).collect();
        match self.calls().call(&call, CALL_LIMIT) {
            Err(CallError::Failed { text, .. }) if is_missing(&text) => Ok(()),
            removed => removed.map(drop),
        }
    }

    /// Removes the containers of a pod, running or not: the `base`, with those that live in its namespaces, then
    /// whatever else is the pod's. Podman 5 may say that it removed a container and leave it: so they are listed.
    fn remove_pod(&self, pod: &str, base: &str) -> Result<(), Failure> {
        let filter = format!("label={POD_LABEL}={pod}");
        let list = ["ps", "--all", "--filter", filter.as_str(), "--format={{.Names}}"];
        let base = container_name(pod, base);
        let mut names = base.clone();
        for _ in 0..4 {
            let call: Vec<&str> = self.removal().iter().copied().chain(names.lines()).collect();
            // One of them may have been removed by itself meanwhile.
            let removed = self.calls().call_to_end(&call, CALL_LIMIT);
            let left = self.calls().call_to_end(&list, CALL_LIMIT).context(|| "cannot list containers".into())?;
            if left.trim().is_empty() {
                return Ok(());
            }
            tracing::debug!(left, ?removed, "containers are left");
            // Never together with those that depend on it.
            names = if left.lines().any(|name| name == base) { base.clone() } else { left };
        }
        Err(failure(format!("cannot remove the containers of the pod {pod}: {} are left", names.replace('\n', " "))))
    }
}

/// Whether an error says that there is no such container; its name is one of ours.
fn is_missing(text: &str) -> bool {
    text.to_lowercase().contains("no such container")
}

fn parsed<T: for<'a> Deserialize<'a>>(text: &str) -> Result<T, CallError> {
    serde_json::from_str(text)
        .map_err(|e| CallError::Broken(std::io::Error::other(format!("its answer makes no sense: {e}"))))
}
