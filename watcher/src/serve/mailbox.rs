//! What the core has to tell a connection, or the pilot's own loop. Posting never waits, and what waits to be taken has
//! a bound.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::protocol::Hold;
use crate::job::{Phase, Report};

/// Most news that wait to be taken. A job has about ten.
const NEWS_MAX: usize = 256;

/// What a connection is told.
#[derive(Clone, Debug)]
pub enum News {
    /// A job has come to this phase.
    Phase(String, Phase),
    /// A job is over.
    Over(Box<Report>),
    /// What a slot's job is held for, or (`None`) that this is over.
    Hold(u32, Option<Hold>),
}

/// The news of one connection.
#[derive(Debug)]
pub struct Mailbox {
    inner: Mutex<Inner>,
    wake: EventFd,
}

#[derive(Debug, Default)]
struct Inner {
    news: VecDeque<News>,
    /// Only the last one of each slot counts.
    holds: BTreeMap<u32, Option<Hold>>,
    closed: bool,
}

impl Mailbox {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { inner: Mutex::default(), wake })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts news. `false`: the connection has ended, or ends because it takes nothing.
    pub fn post(&self, news: News) -> bool {
        let mut inner = self.lock();
        match news {
            _ if inner.closed => {}
            News::Hold(slot, hold) => drop(inner.holds.insert(slot, hold)),
            _ if inner.news.len() >= NEWS_MAX => inner.closed = true,
            news => inner.news.push_back(news),
        }
        let _ = self.wake.write(1);
        !inner.closed
    }

    /// The next news; an error where there were too many.
    pub fn take(&self) -> io::Result<Option<News>> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(io::Error::other(format!("{NEWS_MAX} answers wait to be read")));
        }
        let hold = |inner: &mut Inner| inner.holds.pop_first().map(|(slot, hold)| News::Hold(slot, hold));
        Ok(inner.news.pop_front().or_else(|| hold(&mut inner)))
    }

    /// Waits for news, at most so long.
    pub fn wait(&self, within: Duration) -> io::Result<Option<News>> {
        self.settle();
        if let Some(news) = self.take()? {
            return Ok(Some(news));
        }
        let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.changed(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => self.take(),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes no more.
    pub fn close(&self) {
        *self.lock() = Inner { closed: true, ..Inner::default() };
    }

    /// Becomes readable with news.
    pub fn changed(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Call before taking.
    pub fn settle(&self) {
        let _ = self.wake.read();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

    use super::*;
    use crate::bind::Reason;

    #[test]
    fn what_waits_to_be_taken_has_a_bound() {
        let mailbox = Mailbox::new().unwrap();
        let hold = |n: usize| Hold { reason: Reason::InvalidJob, message: n.to_string() };
        for n in 0..100_000 {
            assert!(mailbox.post(News::Hold(0, Some(hold(n)))));
        }
        assert!(matches!(mailbox.take().unwrap(), Some(News::Hold(0, Some(last))) if last.message == "99999"));
        assert!(mailbox.take().unwrap().is_none(), "one for each slot");
        let posted = (0..1000).take_while(|_| mailbox.post(News::Phase("job".into(), Phase::Queued))).count();
        assert_eq!(posted, NEWS_MAX);
        assert!(mailbox.take().is_err() && !mailbox.post(News::Hold(0, None)));
        assert!(mailbox.wait(Duration::ZERO).is_err());
        let other = Mailbox::new().unwrap();
        assert!(other.wait(Duration::from_millis(1)).unwrap().is_none());
        other.post(News::Hold(7, None));
        assert!(matches!(other.wait(Duration::from_secs(600)).unwrap(), Some(News::Hold(7, None))));
        mailbox.close();
        assert!(mailbox.lock().news.is_empty());
    }
}
