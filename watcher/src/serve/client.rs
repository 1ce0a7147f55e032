//! A client of the core's socket.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::protocol::{Ask, Hold, JobLine, SlotLine, Tell};
use super::server::{answers, send};
use crate::job::{Phase, Report, Request};

/// One connection. It follows at most one job.
pub struct Client(UnixStream);

impl Client {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self(UnixStream::connect(path)?))
    }

    /// A second handle on the same connection, to send signals from another thread.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Sends what is asked for. A watcher that refuses a client says why and hangs up, maybe before all of it is sent.
    /// For whoever reads the answers: else what is meant for that one could be taken away from it.
    fn ask(&self, ask: &Ask, fds: &[&dyn AsFd]) -> io::Result<()> {
        match send(&self.0, ask, fds) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.one().and(Err(e)),
            sent => sent,
        }
    }

    /// Submits a job and waits for its report; `on_phase` is told of each phase.
    pub fn run(&self, job: &Request, fds: &[&dyn AsFd], on_phase: impl FnMut(Phase)) -> io::Result<Report> {
        self.run_to_end(job, fds, on_phase).map(|(report, _)| report)
    }

    /// The same; also says how many seconds to wait before the job is tried again, where it should be.
    pub fn run_to_end(
        &self,
        job: &Request,
        fds: &[&dyn AsFd],
        mut on_phase: impl FnMut(Phase),
    ) -> io::Result<(Report, f64)> {
        self.ask(&Ask::Submit { job: Box::new(job.clone()) }, fds)?;
        for told in answers(self.0.try_clone()?) {
            match told? {
                Tell::Phase { phase, .. } => on_phase(phase),
                Tell::Result { report, back_off_s } => return Ok((*report, back_off_s)),
                Tell::Error { message } => return Err(io::Error::other(message)),
                Tell::Jobs { .. } | Tell::Sent { .. } | Tell::Top { .. } | Tell::Hold { .. } | Tell::Done => {}
            }
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the watcher has gone"))
    }

    /// Sends a signal to a job's main process.
    pub fn signal(&self, job: &str, signal: i32) -> io::Result<()> {
        send(&self.0, &Ask::Signal { job: job.to_owned(), signal }, &[])
    }

    /// Sends a signal to all processes of a running job. Returns how many got it.
    pub fn steer(&self, job: &str, signal: i32) -> io::Result<u64> {
        self.ask(&Ask::Steer { job: job.to_owned(), signal }, &[])?;
        match self.one()? {
            Tell::Sent { processes } => Ok(processes),
            other => Err(io::Error::other(format!("an answer that was not asked for: {other:?}"))),
        }
    }

    /// The slots, and how many jobs wait for one.
    pub fn top(&self) -> io::Result<(Vec<SlotLine>, usize)> {
        self.ask(&Ask::Top, &[])?;
        match self.one()? {
            Tell::Top { slots, queued } => Ok((slots, queued)),
            other => Err(io::Error::other(format!("an answer that was not asked for: {other:?}"))),
        }
    }

    /// Has a running job's attendant serve a client, which waits at the other end of `meeting`.
    pub fn exec(&self, job: &str, meeting: &UnixStream) -> io::Result<()> {
        self.ask(&Ask::Exec { job: job.to_owned() }, &[meeting])?;
        self.one().map(drop)
    }

    /// Ends a job.
    pub fn cancel(&self, job: &str, why: &str) -> io::Result<()> {
        send(&self.0, &Ask::Cancel { job: job.to_owned(), why: why.to_owned() }, &[])
    }

    /// On the clients' socket: holds this client's slot back, as long as the connection lasts.
    pub fn hold(&self, hold: Hold) -> io::Result<()> {
        send(&self.0, &Ask::Hold { hold }, &[])
    }

    /// On the clients' socket: tells of each slot's hold, now and whenever it changes, until `told` has had enough or
    /// the watcher has gone.
    pub fn follow_holds(&self, mut told: impl FnMut(u32, Option<Hold>) -> io::Result<()>) -> io::Result<()> {
        self.ask(&Ask::Holds, &[])?;
        for answer in answers(self.0.try_clone()?) {
            match answer? {
                Tell::Hold { slot, hold } => told(slot, hold)?,
                Tell::Error { message } => return Err(io::Error::other(message)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Lets the core forget a job whose report is safe.
    pub fn forget(&self, job: &str) -> io::Result<()> {
        self.ask(&Ask::Forget { job: job.to_owned() }, &[])?;
        self.one().map(drop)
    }

    /// All jobs.
    pub fn jobs(&self) -> io::Result<Vec<JobLine>> {
        self.ask(&Ask::Jobs, &[])?;
        match self.one()? {
            Tell::Jobs { jobs } => Ok(jobs),
            other => Err(io::Error::other(format!("an answer that was not asked for: {other:?}"))),
        }
    }

    fn one(&self) -> io::Result<Tell> {
        match answers(self.0.try_clone()?).next() {
            Some(Ok(Tell::Error { message })) => Err(io::Error::other(message)),
            Some(told) => told,
            None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the watcher has gone")),
        }
    }
}
