//! Counts what clients send through a [`Proxy`](super::proxy::Proxy): requests and round trips.

/// How the bytes of a client are divided into requests.
#[derive(Clone, Copy)]
pub enum Protocol {
    /// A request is a command.
    Redis,
    /// A request is a message of the frontend: Parse, Bind, Execute, Sync and others.
    Postgres,
    /// A request is a message.
    MongoDb,
}

/// What clients have sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// The requests.
    pub requests: u64,
    /// How often a client sent something after the server had sent something.
    pub round_trips: u64,
}

/// One connection.
pub(super) struct Tap {
    protocol: Protocol,
    /// The beginning of a request whose end has not been sent yet.
    unfinished: Vec<u8>,
    /// The first message to Postgres has no type.
    is_first: bool,
    server_was_last: bool,
}

impl Tap {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self { protocol, unfinished: Vec::new(), is_first: true, server_was_last: true }
    }

    /// Counts a part that the client sent.
    pub(super) fn sent(&mut self, part: &[u8], traffic: &mut Traffic) {
        traffic.round_trips += u64::from(std::mem::take(&mut self.server_was_last));
        self.unfinished.extend_from_slice(part);
        while let Some(length) = self.length().filter(|length| *length <= self.unfinished.len()) {
            self.unfinished.drain(..length);
            self.is_first = false;
            traffic.requests += 1;
        }
    }

    /// The server sent something.
    pub(super) fn replied(&mut self) {
        self.server_was_last = true;
    }

    /// The length of the first request, as far as it is known.
    fn length(&self) -> Option<usize> {
        let bytes = &self.unfinished[..];
        match self.protocol {
            Protocol::Redis => command(bytes),
            Protocol::Postgres if self.is_first => Some(u32::from_be_bytes(*bytes.first_chunk()?) as usize),
            Protocol::Postgres => Some(1 + u32::from_be_bytes(*bytes.get(1..)?.first_chunk()?) as usize),
            Protocol::MongoDb => Some(u32::from_le_bytes(*bytes.first_chunk()?) as usize),
        }
    }
}

/// The length of a command, which is an array of strings.
fn command(bytes: &[u8]) -> Option<usize> {
    let (mut end, strings) = number(bytes, 0)?;
    for _ in 0..strings {
        let (text, length) = number(bytes, end)?;
        end = text + length + 2;
    }
    Some(end)
}

/// The number after the character at `begin`, and the end of its line.
fn number(bytes: &[u8], begin: usize) -> Option<(usize, usize)> {
    let line = bytes.get(begin..)?;
    let length = line.windows(2).position(|two| two == b"\r\n")?;
    let digits = std::str::from_utf8(&line[1..length]).expect("a number");
    Some((begin + length + 2, digits.parse().expect("a number")))
}
