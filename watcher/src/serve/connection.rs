//! One connection, whoever's it is: lines in, answers and news out, in one thread that waits for its client only as
//! long as it may. A client that keeps a line incomplete, does not read, or wants nothing any more, is dropped.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::lines::Lines;
use super::mailbox::{Mailbox, News};
use super::protocol::{Ask, Tell};

/// While more than this waits to be read by the client, nothing new is done for it.
const UNREAD_MAX: usize = 64 << 10;
/// Longest message of an error, in characters: it may repeat what the client has sent.
const MESSAGE_MAX: usize = 2 << 10;

/// What a connection is open for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Nothing: the next line is waited for.
    Idle,
    /// A slot's job is held as long as it lasts.
    Holds,
    /// A job of it is under way, or it follows what slots hold.
    Waits,
}

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// For a line, from its first byte to its end.
    pub(super) line: Duration,
    /// Until it reads on, once answers wait for it.
    pub(super) unread: Duration,
    /// Until its next line, while it waits for nothing.
    pub(super) idle: Duration,
    /// The same while it holds a slot's job.
    pub(super) holds: Duration,
}

/// As in `docs/protocol.md`.
pub(super) const TIMES: Times = Times {
    line: Duration::from_secs(10),
    unread: Duration::from_secs(30),
    idle: Duration::from_secs(60),
    holds: Duration::from_secs(600),
};

/// What is done for a client.
pub(super) trait Service {
    /// Does what a line asks for. Descriptors that are not used are closed.
    fn answer(&mut self, ask: Ask, descriptors: Vec<OwnedFd>) -> Result<Option<Tell>, String>;

    /// Acts on news, and puts them into words.
    fn tell(&mut self, news: News) -> Tell;

    /// What the connection is open for.
    fn purpose(&self) -> Purpose;
}

/// Answers on their way.
struct Unread {
    bytes: Vec<u8>,
    sent: usize,
    moved: Instant,
}

impl Unread {
    fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    fn push(&mut self, what: &Tell) -> io::Result<()> {
        if self.len() == 0 {
            self.moved = Instant::now();
        }
        serde_json::to_writer(&mut self.bytes, what)?;
        self.bytes.push(b'\n');
        Ok(())
    }

    /// Sends what the client has room for.
    fn send(&mut self, mut stream: &UnixStream) -> io::Result<()> {
        while self.len() > 0 {
            match stream.write(self.bytes.get(self.sent..).unwrap_or_default()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => (self.sent, self.moved) = (self.sent + n, Instant::now()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        (self.bytes, self.sent) = (Vec::new(), 0);
        Ok(())
    }

    /// Says why the connection is ended, where that does not end up within an answer.
    fn refuse(&self, stream: &UnixStream, message: &str) {
        if self.len() == 0 {
            refuse(stream, message);
        }
    }
}

/// An error as a client is told it.
pub(super) fn error(message: &str) -> Tell {
    Tell::Error { message: message.chars().take(MESSAGE_MAX).collect() }
}

/// Tells a client that it is not served, if it takes that without waiting.
pub(super) fn refuse(stream: &UnixStream, message: &str) {
    let mut unread = Unread { bytes: Vec::new(), sent: 0, moved: Instant::now() };
    let told =
        stream.set_nonblocking(true).and_then(|()| unread.push(&error(message))).and_then(|()| unread.send(stream));
    if let Err(e) = told {
        tracing::debug!("a client that is not served has gone: {e}");
    }
}

/// Serves a connection to its end. An error says why it was ended from our side.
pub(super) fn serve(
    stream: &UnixStream,
    mailbox: &Mailbox,
    service: &mut dyn Service,
    times: &Times,
) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let mut lines = Lines::default();
    let mut unread = Unread { bytes: Vec::new(), sent: 0, moved: Instant::now() };
    let (mut quiet_since, mut open) = (Instant::now(), true);
    loop {
        mailbox.settle();
        while unread.len() < UNREAD_MAX
            && let Some(news) = mailbox.take()?
        {
            unread.push(&service.tell(news))?;
            quiet_since = Instant::now();
        }
        let full = unread.len() >= UNREAD_MAX;
        unread.send(stream)?;
        let takes_more = unread.len() < UNREAD_MAX;
        if full && takes_more {
            // News that came meanwhile were left, and nothing would wake this up for them again.
            continue;
        }
        if takes_more {
            match lines.next() {
                Ok(Some(line)) => {
                    let answer = match serde_json::from_slice::<Ask>(&line.text) {
                        Ok(ask) => service.answer(ask, line.descriptors),
                        Err(e) => Err(format!("not understood: {e}")),
                    };
                    if let Some(answer) = answer.unwrap_or_else(|message| Some(error(&message))) {
                        unread.push(&answer)?;
                    }
                    quiet_since = Instant::now();
                    continue;
                }
                Ok(None) if !open && unread.len() == 0 => return Ok(()),
                Ok(None) => {}
                Err(e) => {
                    unread.refuse(stream, &e.to_string());
                    return Err(e);
                }
            }
        }
        let idle = match service.purpose() {
            Purpose::Idle => Some((times.idle, "asks for nothing")),
            Purpose::Holds => Some((times.holds, "holds a job for too long")),
            Purpose::Waits => None,
        };
        let deadlines = [
            (unread.len() > 0).then_some((unread.moved, times.unread, "does not read its answers")),
            lines.began().map(|began| (began, times.line, "does not end its line")),
            idle.map(|(within, what)| (quiet_since, within, what)),
        ];
        let deadlines = deadlines.into_iter().flatten();
        let next = deadlines.filter_map(|(since, within, what)| Some((since.checked_add(within)?, what))).min();
        let left = next.map(|(at, _)| at.saturating_duration_since(Instant::now()));
        if let Some((_, what)) = next.filter(|_| left.is_some_and(|left| left.is_zero())) {
            let message = format!("the client {what}");
            unread.refuse(stream, &message);
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::POLLIN, takes_more && open);
        wanted.set(PollFlags::POLLOUT, unread.len() > 0);
        let mut wait = [PollFd::new(stream.as_fd(), wanted), PollFd::new(mailbox.changed(), PollFlags::POLLIN)];
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let _ = poll(&mut wait, timeout);
        let readable = wait.first().and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        if takes_more && open && readable.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            match lines.receive(stream) {
                Ok(more) => open = more,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => {
                    unread.refuse(stream, &e.to_string());
                    return Err(e);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test ends where it fails")]

    use super::*;
    use std::io::{BufRead, BufReader, Read};
    use std::sync::Arc;

    const LONG: Duration = Duration::from_secs(600);
    const SHORT: Duration = Duration::from_millis(20);
    const LONG_TIMES: Times = Times { line: LONG, unread: LONG, idle: LONG, holds: LONG };

    /// Answers `jobs` with as many bytes as are wanted.
    struct Big(usize, Purpose);

    impl Service for Big {
        fn answer(&mut self, _: Ask, _: Vec<OwnedFd>) -> Result<Option<Tell>, String> {
            let message = "x".repeat(self.0);
            Ok(Some(Tell::Error { message }))
        }

        fn tell(&mut self, _: News) -> Tell {
            Tell::Done
        }

        fn purpose(&self) -> Purpose {
            self.1
        }
    }

    fn start(
        size: usize,
        purpose: Purpose,
        times: Times,
    ) -> (UnixStream, Arc<Mailbox>, std::thread::JoinHandle<String>) {
        let (client, ours) = UnixStream::pair().unwrap();
        let mailbox = Arc::new(Mailbox::new().unwrap());
        let news = mailbox.clone();
        let thread = std::thread::spawn(move || {
            let served = serve(&ours, &news, &mut Big(size, purpose), &times);
            served.map_or_else(|e| e.to_string(), |()| "gone".into())
        });
        (client, mailbox, thread)
    }

    /// What the client reads until the end.
    fn rest(mut client: &UnixStream) -> String {
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        text
    }

    const JOBS: &[u8] = b"{\"verb\":\"jobs\"}\n";

    #[test]
    fn a_client_that_wants_nothing_or_does_not_end_its_line_is_dropped() {
        let (client, _news, end) = start(0, Purpose::Idle, Times { idle: SHORT, ..LONG_TIMES });
        assert!(rest(&client).contains("asks for nothing"));
        assert_eq!(end.join().unwrap(), "the client asks for nothing");
        let (client, _news, end) = start(0, Purpose::Holds, Times { holds: SHORT, ..LONG_TIMES });
        assert!(rest(&client).contains("holds a job for too long"));
        end.join().unwrap();
        let (mut client, _news, end) = start(0, Purpose::Waits, Times { line: SHORT, ..LONG_TIMES });
        client.write_all(b"{\"verb\":").unwrap();
        assert!(rest(&client).contains("does not end its line"));
        end.join().unwrap();
        // One that waits for its job does so for as long as that takes.
        let short = Times { line: SHORT, idle: Duration::ZERO, holds: Duration::ZERO, unread: SHORT };
        let (client, news, end) = start(0, Purpose::Waits, short);
        news.post(News::Hold(0, None));
        let mut line = String::new();
        BufReader::new(&client).read_line(&mut line).unwrap();
        assert_eq!(line, "{\"event\":\"done\"}\n");
        drop(client);
        assert_eq!(end.join().unwrap(), "gone");
    }

    #[test]
    fn a_client_that_does_not_read_is_dropped_and_costs_no_more_than_an_answer() {
        let (mut client, news, end) = start(1 << 20, Purpose::Waits, Times { unread: SHORT, ..LONG_TIMES });
        for _ in 0..10 {
            client.write_all(JOBS).unwrap();
        }
        assert_eq!(end.join().unwrap(), "the client does not read its answers");
        let (mut some, mut read) = ([0; 1 << 16], 0);
        while let Ok(n @ 1..) = client.read(&mut some) {
            read += n;
        }
        assert!(read < 1 << 20, "it was given up within the first answer");
        // And neither do news wait for it without bound.
        drop(news);
        let (mut client, news, end) = start(1 << 20, Purpose::Waits, LONG_TIMES);
        client.write_all(JOBS).unwrap();
        while news.post(News::Phase("job".into(), crate::job::Phase::Queued)) {}
        while client.read(&mut some).is_ok_and(|n| n > 0) {}
        assert!(end.join().unwrap().contains("wait to be read"));
    }

    /// Answers with `Big`, and has news for its client before that is sent.
    struct WithNews(Big, Arc<Mailbox>);

    impl Service for WithNews {
        fn answer(&mut self, ask: Ask, descriptors: Vec<OwnedFd>) -> Result<Option<Tell>, String> {
            self.1.post(News::Phase("job".into(), crate::job::Phase::Queued));
            self.0.answer(ask, descriptors)
        }

        fn tell(&mut self, news: News) -> Tell {
            self.0.tell(news)
        }

        fn purpose(&self) -> Purpose {
            self.0.purpose()
        }
    }

    #[test]
    fn news_behind_an_answer_that_fills_the_queue_are_sent_when_that_is_gone() {
        let (mut client, ours) = UnixStream::pair().unwrap();
        client.set_read_timeout(Some(LONG / 10)).unwrap();
        let news = Arc::new(Mailbox::new().unwrap());
        let mut service = WithNews(Big(UNREAD_MAX, Purpose::Waits), news.clone());
        let end = std::thread::spawn(move || serve(&ours, &news, &mut service, &LONG_TIMES).is_ok());
        client.write_all(JOBS).unwrap();
        let mut lines = BufReader::new(&client).lines();
        assert!(lines.next().unwrap().unwrap().len() > UNREAD_MAX);
        assert_eq!(lines.next().unwrap().unwrap(), "{\"event\":\"done\"}");
        drop(lines);
        drop(client);
        assert!(end.join().unwrap());
    }

    #[test]
    fn whoever_reads_gets_every_answer_however_long_it_is() {
        let (mut client, _news, end) = start(3 << 20, Purpose::Idle, LONG_TIMES);
        for _ in 0..3 {
            client.write_all(JOBS).unwrap();
        }
        client.write_all(b"{\"verb\":\"nothing\"}\n").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let text = rest(&client);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(lines[..3].iter().all(|line| line.len() > 3 << 20) && lines[3].contains("not understood"));
        assert_eq!(end.join().unwrap(), "gone");
    }
}
