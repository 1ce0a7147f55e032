//! Which images a pilot may bind, whether they are here, and what it means when they are not.

use crate::calls::CallError;
use crate::engine::{Engine, Image};
use crate::pattern::matches;
use std::sync::Arc;
use watcher::bind::message::Message;
use watcher::bind::{Failure, ImageCommand, Reason, architecture};
use watcher::reference::Reference;

/// Whether an image that is not here is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Pull {
    /// If its name names a registry, also where it is here.
    Always,
    /// If it is not here, and its name names a registry.
    Missing,
    /// Never.
    Never,
}

/// Patterns over fully written references; `*` stands for any text.
#[derive(Clone, Debug)]
pub struct AllowList {
    patterns: Vec<String>,
    exact: Option<Reference>,
}

impl AllowList {
    /// What was built on this machine, and what `patterns` add.
    pub fn new(patterns: &[String]) -> Self {
        let patterns = ["localhost/*".to_owned()].into_iter().chain(patterns.iter().cloned()).collect();
        Self { patterns, exact: None }
    }

    /// This one image, and no other.
    pub fn only(image: Reference) -> Self {
        Self { patterns: Vec::new(), exact: Some(image) }
    }

    /// Whether `image` may be bound.
    pub fn allows(&self, image: &Reference) -> bool {
        let text = image.to_string();
        self.exact.as_ref() == Some(image)
            || self.patterns.iter().any(|p| matches(&p.split('*').collect::<Vec<_>>(), &text))
    }
}

/// An image that is here and can run here.
#[derive(Clone, Debug)]
pub struct Ready {
    /// `sha256:` and the digest of its configuration.
    pub id: String,
    /// Whether it was fetched now.
    pub pulled: bool,
    /// What it runs by itself; `None` where that is larger than any that is used.
    pub command: Option<Arc<ImageCommand>>,
}

/// Makes sure that images are here, are for this machine, and leave to us how they are run. With `progress` the user
/// sees what the engine says.
pub fn prepare(engine: &dyn Engine, images: &[(&str, Pull)], progress: bool) -> Result<Vec<Ready>, Failure> {
    // One call for all, where all are here; else each of them says what it lacks.
    let names: Vec<&str> = images.iter().map(|(name, _)| *name).collect();
    let newest = |(name, pull): &(&str, Pull)| *pull == Pull::Always && !is_local(name);
    let known = if images.len() > 1 && !images.iter().any(newest) { engine.images(&names).ok() } else { None };
    let mut known = known.filter(|known| known.len() == images.len()).map(Vec::into_iter);
    let mut one = |(name, pull): &(&str, Pull)| {
        let mut pulled = newest(&(name, *pull));
        if pulled {
            fetch(engine, name, *pull, progress)?;
        }
        let image = match known.as_mut().and_then(Iterator::next) {
            Some(image) => image,
            None => match inspect(engine, name)? {
                Some(image) => image,
                None => {
                    (pulled, ()) = (true, fetch(engine, name, *pull, progress)?);
                    let message = format!("{name} was pulled, and is not on this machine all the same");
                    inspect(engine, name)?.ok_or_else(|| Failure::retry(Reason::EngineError, message))?
                }
            },
        };
        image.metadata.check(name)?;
        engine.check_image(name, &image)?;
        if let Some(what) = mismatch(&image) {
            return Err(Failure::hold(Reason::WrongArchitecture, format!("{name} {what}")));
        }
        let command = image.metadata.command().map(Arc::new);
        Ok(Ready { id: format!("sha256:{}", image.id.trim_start_matches("sha256:")), pulled, command })
    };
    images.iter().map(&mut one).collect()
}

fn fetch(engine: &dyn Engine, name: &str, pull: Pull, progress: bool) -> Result<(), Failure> {
    let missing = |why: &str| Failure::hold(Reason::ImageNotFound, format!("{name} is not on this machine, {why}"));
    if pull == Pull::Never {
        return Err(missing("and pulling is off"));
    }
    if is_local(name) {
        return Err(missing("where it would be built"));
    }
    engine.pull(name, progress).map_err(|e| pull_failure(name, &e))
}

/// Whether no registry has it.
fn is_local(name: &str) -> bool {
    Reference::parse_full(name).is_ok_and(|image| image.is_local())
}

fn inspect(engine: &dyn Engine, name: &str) -> Result<Option<Image>, Failure> {
    engine.image(name).map_err(|e| match e {
        CallError::TooMuchOutput => Failure::hold(
            Reason::CreateContainerError,
            format!("what {name} says of itself (labels, environment, history) takes more than a megabyte"),
        ),
        e => Failure::retry(Reason::EngineError, format!("cannot inspect the image {name}: {e}")),
    })
}

/// An image that names no architecture is believed: hand-made ones do not.
fn mismatch(image: &Image) -> Option<String> {
    let Image { architecture: theirs, os, .. } = image;
    if !os.is_empty() && os != "linux" {
        return Some(format!("is made for {os}, this machine runs linux"));
    }
    let ours = architecture();
    let fits = theirs.is_empty() || theirs == ours;
    (!fits).then(|| format!("is made for {theirs}, this machine is {ours}: build or name one for {ours}"))
}

fn pull_failure(name: &str, e: &CallError) -> Failure {
    let message = format!("cannot pull {name}: {e}");
    let reason = match e {
        CallError::Failed { code: Some(_), text } => {
            Message::read(text, name).of_pull().unwrap_or(Reason::RegistryUnavailable)
        }
        CallError::TookTooLong(_) => Reason::PullTimeout,
        _ => Reason::EngineError,
    };
    Failure::new(reason.class(), reason, message)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;
    use crate::calls::PULL_LIMIT;
    use watcher::bind::Class;

    #[test]
    fn the_allow_list() {
        let image = |text| Reference::parse_full(text).unwrap();
        let list = AllowList::new(&["quay.io/mine/*".into()]);
        assert!(list.allows(&image("localhost/x:1")));
        assert!(list.allows(&image("quay.io/mine/x")));
        assert!(!list.allows(&image("quay.io/yours/x")));
        let only = AllowList::only(image("quay.io/yours/x"));
        assert!(only.allows(&image("quay.io/yours/x:latest")));
        assert!(!only.allows(&image("localhost/x:1")));
    }

    #[test]
    fn what_a_failed_pull_means() {
        let refused = |name: &str, said: &str| {
            let refusal = pull_failure(name, &CallError::Failed { code: Some(125), text: said.into() });
            (refusal.class, refusal.reason)
        };
        let unknown =
            "initializing source docker://r.example/denied:1: reading manifest 1 in r.example/denied: manifest unknown";
        assert_eq!(refused("r.example/denied:1", unknown), (Class::Hold, Reason::ImageNotFound));
        let away = "initializing source docker://r.example/denied:401: pinging container registry r.example: Get \"https://r.example/v2/\": dial tcp: lookup r.example: no such host";
        assert_eq!(refused("r.example/denied:401", away), (Class::Retry, Reason::RegistryUnavailable));
        let new = "initializing source docker://r.example/denied/unauthorized:1: something never heard of";
        assert_eq!(refused("r.example/denied/unauthorized:1", new), (Class::Retry, Reason::RegistryUnavailable));
        let late = pull_failure("r.example/a:1", &CallError::TookTooLong(PULL_LIMIT));
        assert_eq!((late.class, late.reason), (Class::Retry, Reason::PullTimeout));
    }

    #[test]
    fn architectures() {
        let image = |architecture: &str, os: &str| Image {
            architecture: architecture.into(),
            os: os.into(),
            ..Image::default()
        };
        assert!(mismatch(&image("", "")).is_none());
        assert!(mismatch(&image(architecture(), "linux")).is_none());
        assert!(mismatch(&image("s390x", "linux")).is_some());
        assert!(mismatch(&image("", "windows")).is_some());
    }
}
