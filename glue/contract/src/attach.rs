//! What a client at a terminal, or of `watcher exec`, and the payload's side say to each other.
//!
//! Stage two, and the attendant that it leaves where the job asks for one, connect to a socket of the watcher's
//! ([`super::layout::attach`]). The watcher passes each connection on to a client, and reads nothing of it: whatever
//! comes from there is the payload's word, and no more than a client's session rests on it.
//!
//! A connection begins with [`Kind`] and the descriptors that belong to it. One of the attendant's waits for a request
//! before that, and ends with [`End`].

/// Largest request of a client, in bytes.
pub const REQUEST_MAX: usize = 128 << 10;

/// First byte of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The master of a terminal comes along.
    Terminal = b't',
    /// Three pipes come along: to standard input, from standard output, from standard error.
    Pipes = b'p',
}

/// How a command of `watcher exec` has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// It could not be made, for this error number.
    Failed(i32),
}

impl End {
    /// As it is sent.
    pub fn bytes(self) -> [u8; 5] {
        let (kind, number) = match self {
            Self::Exited(code) => (b'x', code),
            Self::Signaled(signal) => (b's', signal),
            Self::Failed(errno) => (b'e', errno),
        };
        let [a, b, c, d] = number.to_le_bytes();
        [kind, a, b, c, d]
    }

    /// Understands what was sent.
    #[cfg(feature = "watcher")]
    pub fn parse(bytes: [u8; 5]) -> Option<Self> {
        let [kind, number @ ..] = bytes;
        let number = i32::from_le_bytes(number);
        match kind {
            b'x' => Some(Self::Exited(number)),
            b's' => Some(Self::Signaled(number)),
            b'e' => Some(Self::Failed(number)),
            _ => None,
        }
    }
}

/// What a client of `watcher exec` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request<'a> {
    /// Rows and columns of a terminal; pipes where there is none.
    pub terminal: Option<[u16; 2]>,
    /// Where to start; the job's own directory where it is empty.
    pub cwd: &'a [u8],
    /// `NAME=VALUE`, beside the job's own.
    pub env: Vec<&'a [u8]>,
    /// Program and arguments.
    pub argv: Vec<&'a [u8]>,
}

/// Whether there is a terminal, its rows and columns, and how many variables there are.
const HEAD: usize = 7;

impl<'a> Request<'a> {
    /// As it is sent: the number of bytes that follow, and these. `None` where it is too long, or a text has a NUL.
    #[cfg(feature = "watcher")]
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let [rows, columns] = self.terminal.unwrap_or_default();
        let mut body = vec![u8::from(self.terminal.is_some())];
        let variables = u16::try_from(self.env.len()).ok()?;
        [rows, columns, variables].iter().for_each(|number| body.extend(number.to_le_bytes()));
        for text in core::iter::once(&self.cwd).chain(&self.env).chain(&self.argv) {
            if text.contains(&0) {
                return None;
            }
            body.extend(*text);
            body.push(0);
        }
        let length = u32::try_from(body.len()).ok()?;
        (body.len() <= REQUEST_MAX).then(|| [&length.to_le_bytes()[..], &body].concat())
    }

    /// Understands what follows the number of bytes.
    pub fn parse(body: &'a [u8]) -> Option<Self> {
        let (head, texts) = body.split_at_checked(HEAD)?;
        let &[terminal, r, s, c, d, n, m] = head else { return None };
        let mut texts = texts.strip_suffix(&[0])?.split(|byte| *byte == 0);
        let cwd = texts.next()?;
        let env: Vec<_> = texts.by_ref().take(usize::from(u16::from_le_bytes([n, m]))).collect();
        let argv: Vec<_> = texts.collect();
        let size = [u16::from_le_bytes([r, s]), u16::from_le_bytes([c, d])];
        (!argv.is_empty()).then_some(Self { terminal: (terminal != 0).then_some(size), cwd, env, argv })
    }
}

#[cfg(all(test, feature = "watcher"))]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends where it fails")]
    use super::*;

    #[test]
    fn a_request_comes_through_as_it_is() {
        let whole = Request {
            terminal: Some([24, 300]),
            cwd: b"/tmp",
            env: vec![b"A=\xff", b"B="],
            argv: vec![b"sh", b"", b"-c"],
        };
        for request in [whole.clone(), Request { argv: vec![b"x"], ..Request::default() }] {
            let bytes = request.bytes().unwrap();
            let (length, body) = bytes.split_at(4);
            assert_eq!(usize::try_from(u32::from_le_bytes(length.try_into().unwrap())).unwrap(), body.len());
            assert_eq!(Request::parse(body), Some(request));
        }
        assert_eq!(Request { argv: vec![b"a\0b"], ..Request::default() }.bytes(), None);
        let long = vec![b'x'; REQUEST_MAX];
        assert_eq!(Request { argv: vec![&long], ..Request::default() }.bytes(), None);
        // Whatever else comes is refused, or is another request; it ends nothing.
        let bytes = whole.bytes().unwrap();
        for cut in 0..bytes.len() - 4 {
            let _ = Request::parse(&bytes[4..4 + cut]);
        }
        for bad in [&b""[..], b"\0\0\0\0\0\0\0", b"\0\0\0\0\0\0\0\0", b"\0\0\0\0\0\xff\xff\0a\0", b"\0\0\0\0\0\0\0\0a"]
        {
            assert_eq!(Request::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_end_comes_through_as_it_is() {
        for end in [End::Exited(255), End::Signaled(9), End::Failed(12)] {
            assert_eq!(End::parse(end.bytes()), Some(end));
        }
        assert_eq!(End::parse(*b"?\0\0\0\0"), None);
    }
}
