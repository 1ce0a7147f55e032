//! A pilot whose jobs come from a source: one thread asks for them, another one reports them. The loop decides when a
//! job is fetched; what it does with it is what it does with any job of a spool.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use crate::pace::Pace;
use crate::source::remote::{Fetched, Inbox, JobSource, Outbox, Places, Reported, TimeLimit};
use crate::source::spool::Spool;

/// First wait after the source had nothing.
const NOTHING_FIRST: Duration = Duration::from_secs(1);
/// Waits after the source could not be asked.
const FAILED: Pace = Pace { first: Duration::from_secs(2), most: Duration::from_secs(300) };
/// Most results that wait for the source to take them. While there are so many, no job is fetched: each could only
/// become another one.
const BACKLOG_MAX: usize = 100;
/// How long the end of the pilot may take: a question under way, and a last report of everything.
const END_WITHIN: Duration = Duration::from_secs(10);

/// Where jobs come from, where it is no spool of others.
#[derive(Clone)]
pub struct Remote {
    /// The source.
    pub source: Arc<dyn JobSource>,
    /// Longest wait between two questions while it has nothing.
    pub wait_most: Duration,
}

/// What the thread that reports is told.
enum Report {
    /// Something may have come.
    Look,
    /// Everything once, and then no more.
    Last,
}

/// Both threads, as the loop sees them.
pub struct Feed {
    ask: Sender<()>,
    answers: Receiver<Fetched>,
    is_asked: bool,
    /// Not asked again before.
    next: Instant,
    /// Times in a row that there was nothing, and that it failed.
    in_a_row: (u32, u32),
    nothing: Pace,
    report: Sender<Report>,
    reporting: Receiver<()>,
    backlog: Arc<AtomicUsize>,
    is_full_said: bool,
    limit: TimeLimit,
}

impl Feed {
    /// Starts both threads. `wake` is called when the loop should look at what was fetched.
    pub fn start(remote: &Remote, private: &Path, spool: &Spool, wake: impl Fn() + Send + 'static) -> io::Result<Self> {
        let (places, limit) = (Places::new(private), TimeLimit::default());
        let reported = Arc::new(Reported::open(places.reported())?);
        let inbox = Inbox::new(remote.source.clone(), spool.clone(), reported.clone(), &places, limit.clone());
        let outbox = Outbox::new(remote.source.clone(), reported, &places, limit.clone())?;
        let backlog = outbox.backlog();
        let (ask, asked) = channel();
        let (answer, answers) = channel();
        std::thread::Builder::new().name("fetch".into()).spawn(move || {
            for () in asked {
                if answer.send(inbox.fetch()).is_err() {
                    return;
                }
                wake();
            }
        })?;
        let (report, orders) = channel();
        let (ended, reporting) = channel();
        std::thread::Builder::new().name("report".into()).spawn(move || {
            report_all(outbox, &orders);
            drop(ended);
        })?;
        let most = remote.wait_most.max(NOTHING_FIRST);
        Ok(Self {
            ask,
            answers,
            is_asked: false,
            next: Instant::now(),
            in_a_row: (0, 0),
            nothing: Pace { first: NOTHING_FIRST, most },
            report,
            reporting,
            backlog,
            is_full_said: false,
            limit,
        })
    }

    /// Asks for a job, unless a question is under way, it is too early, or the pilot has no place for one. That is looked
    /// at last, since it reads the spool.
    pub fn want(&mut self, has_place: impl FnOnce() -> bool) {
        self.take_answers();
        if self.is_asked || Instant::now() < self.next || !has_place() {
            return;
        }
        let backlog = self.backlog.load(Ordering::SeqCst);
        if backlog >= BACKLOG_MAX {
            if !self.is_full_said {
                tracing::error!("{backlog} results wait to be reported: no job is fetched until there are fewer");
            }
            self.is_full_said = true;
            return;
        }
        self.is_full_said = false;
        self.is_asked = self.ask.send(()).is_ok();
    }

    fn take_answers(&mut self) {
        while let Ok(fetched) = self.answers.try_recv() {
            self.take_answer(&fetched);
        }
    }

    fn take_answer(&mut self, fetched: &Fetched) {
        self.is_asked = false;
        let (nothing, failed) = self.in_a_row;
        let wait = match fetched {
            Fetched::Job(_) => {
                self.in_a_row = (0, 0);
                Duration::ZERO
            }
            Fetched::Nothing(asked) => {
                self.in_a_row = (nothing.saturating_add(1), 0);
                self.nothing.wait(self.in_a_row.0, *asked)
            }
            Fetched::Failed(asked) => {
                self.in_a_row = (0, failed.saturating_add(1));
                FAILED.wait(self.in_a_row.1, *asked)
            }
        };
        self.next = Instant::now() + wait;
    }

    /// A job was delivered: there may be a result to report.
    pub fn delivered(&self) {
        let _ = self.report.send(Report::Look);
    }

    /// Whether nothing is under way: no question, and no result that the source does not have.
    pub fn is_idle(&mut self) -> bool {
        self.take_answers();
        !self.is_asked && self.backlog.load(Ordering::SeqCst) == 0
    }

    /// Ends a question that is under way, within the time that there is for the end.
    pub fn end_fetching(&mut self) {
        self.limit.end_at(Instant::now() + END_WITHIN);
        if !self.is_asked {
            return;
        }
        match self.answers.recv_timeout(END_WITHIN) {
            Ok(fetched) => self.take_answer(&fetched),
            Err(_) => tracing::warn!("the source has not answered in time: a job that it gives now is lost to it"),
        }
    }

    /// Reports everything once more, and ends.
    pub fn end_reporting(self) {
        let _ = self.report.send(Report::Last);
        if self.reporting.recv_timeout(self.limit.left(Instant::now(), END_WITHIN)) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("not everything was reported: a pilot with the same private volume goes on with it");
        }
    }
}

fn report_all(mut outbox: Outbox, orders: &Receiver<Report>) {
    loop {
        let next = outbox.round();
        let order = match next {
            Some(at) => orders.recv_timeout(at.saturating_duration_since(Instant::now())),
            None => orders.recv().map_err(Into::into),
        };
        match order {
            Ok(Report::Look) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Report::Last) => return outbox.last_round(),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
