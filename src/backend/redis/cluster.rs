//! A cluster: which server has which keys.
//!
//! As the [cluster specification](https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/) says: a key
//! belongs to one of 16,384 slots, a slot to one master. A server that is asked for another's key answers where it is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use redis::{Cmd, Value, cmd};

use super::{
    RedisOptions,
    connection::{Address, Settings, Target},
    error,
    node::Node,
    reply,
};
use crate::{Error, ErrorKind, Result, backend::remote::Effect};

pub(super) const SLOTS: usize = 16_384;

pub(super) struct Cluster {
    settings: Arc<Settings>,
    config: RedisOptions,
    seeds: Vec<Address>,
    max: AtomicU32,
    map: ArcSwap<Map>,
    learning: AtomicBool,
    turn: AtomicUsize,
    closed: AtomicBool,
}

/// Which server has which slots.
struct Map {
    nodes: Vec<(Address, Arc<Node>)>,
    /// For each slot an index of `nodes`, or [`NOBODY`].
    owners: Box<[u16]>,
}

const NOBODY: u16 = u16::MAX;

impl Map {
    fn node(&self, addr: &Address) -> Option<&Arc<Node>> {
        self.nodes.iter().find(|(known, _)| known == addr).map(|(_, node)| node)
    }
}

/// Where a command has to go.
pub(super) struct Redirect {
    pub(super) node: Arc<Node>,
    /// The slot is on its way there: only this one command may go.
    pub(super) asking: bool,
}

impl Redirect {
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.node, &other.node) && self.asking == other.asking
    }
}

/// Some slots, and a name in one of them if they have a server.
#[derive(Default)]
pub(super) struct Place {
    pub(super) slots: usize,
    pub(super) name: Option<String>,
}

/// A master of a single slot is found among so many names in all but one of some ten million searches.
const MOST_NAMES: usize = 1 << 18;

/// What a server of a cluster says.
pub(super) enum Reply {
    Final(Value),
    /// Nothing was done: it has to go to another.
    Elsewhere(Redirect),
}

#[cold]
pub(super) fn rearranged() -> Error {
    Error::new(ErrorKind::Unavailable, "the Redis cluster is being rearranged")
}

/// A cluster that sends a command around more often than this is being rearranged.
pub(super) const REDIRECTS: usize = 8;

/// How long one server may take to tell of the cluster before another is asked.
const PATIENCE: Duration = Duration::from_secs(1);

/// The cluster is not asked more often than this.
const PAUSE: Duration = Duration::from_millis(100);

impl Cluster {
    pub(super) fn new(settings: Arc<Settings>, seeds: Vec<Address>, config: &RedisOptions) -> Self {
        Self {
            settings,
            config: config.clone(),
            seeds,
            max: AtomicU32::new(config.pool_size),
            map: ArcSwap::from_pointee(Map { nodes: Vec::new(), owners: [NOBODY; SLOTS].into() }),
            learning: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        }
    }

    fn open_node(&self, addr: &Address) -> Result<Arc<Node>> {
        let target = || Target::Server(addr.clone());
        Node::new(&self.settings, target, &self.config, self.max.load(Ordering::Relaxed)).map(Arc::new)
    }

    /// The master of a slot.
    pub(super) fn owner(&self, slot: u16) -> Result<Arc<Node>> {
        let map = self.map.load();
        match map.nodes.get(usize::from(map.owners[usize::from(slot)])) {
            Some((_, node)) => Ok(node.clone()),
            None if self.closed.load(Ordering::Acquire) => Err(Error::closed()),
            None => {
                Err(Error::new(ErrorKind::Unavailable, "no server of the Redis cluster has this key's slot"))
            }
        }
    }

    /// All masters.
    pub(super) fn masters(&self) -> Vec<(Address, Arc<Node>)> {
        let map = self.map.load();
        let mut owners = map.owners.to_vec();
        owners.sort_unstable();
        owners.dedup();
        owners.iter().filter_map(|index| map.nodes.get(usize::from(*index)).cloned()).collect()
    }

    /// For each master how many slots it has and which of these names is in one of them; last the slots that have none.
    pub(super) fn places(&self, names: impl Iterator<Item = String>) -> Vec<Place> {
        let map = self.map.load();
        let mut places: Vec<Place> = (0..=map.nodes.len()).map(|_| Place::default()).collect();
        let place = |owner: u16| usize::from(owner).min(map.nodes.len());
        map.owners.iter().for_each(|owner| places[place(*owner)].slots += 1);
        let mut unnamed = places[..map.nodes.len()].iter().filter(|place| place.slots > 0).count();
        for name in names.take(MOST_NAMES) {
            if unnamed == 0 {
                break;
            }
            let owner = place(map.owners[usize::from(slot_of(name.as_bytes()))]);
            if owner < map.nodes.len() && places[owner].name.is_none() {
                places[owner].name = Some(name);
                unnamed -= 1;
            }
        }
        places.retain(|place| place.slots > 0);
        places
    }

    /// Whether a reply sends its command elsewhere.
    pub(super) fn redirect(self: &Arc<Self>, reply: Value, from: &Arc<Node>) -> Result<Reply> {
        let asking = match &reply {
            Value::ServerError(error) if error.code() == "MOVED" => false,
            Value::ServerError(error) if error.code() == "ASK" => true,
            _ => return Ok(Reply::Final(reply)),
        };
        if !asking {
            self.suspect();
        }
        let Value::ServerError(error) = &reply else { return Ok(Reply::Final(reply)) };
        let place =
            error.details().and_then(|details| details.split_once(' ')).map_or("", |(_, place)| place);
        // A server that does not know its own name leaves it out.
        let host =
            |host: &str| if host.is_empty() || host == "?" { self.host(from) } else { Some(host.to_owned()) };
        let addr = place
            .rsplit_once(':')
            .and_then(|(name, port)| Some(Address::Host(host(name)?, port.parse().ok()?)))
            .ok_or_else(rearranged)?;
        Ok(Reply::Elsewhere(Redirect { node: self.node(&addr)?, asking }))
    }

    /// An error that may mean that another server has the data now.
    pub(super) fn doubt(self: &Arc<Self>, error: &Error) {
        if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) {
            self.suspect();
        }
    }

    fn host(&self, node: &Arc<Node>) -> Option<String> {
        self.map.load().nodes.iter().find(|(_, known)| Arc::ptr_eq(known, node)).and_then(|(addr, _)| {
            match addr {
                Address::Host(host, _) => Some(host.clone()),
                Address::Socket(_) => None,
            }
        })
    }

    /// The server at this address, which may be new.
    fn node(&self, addr: &Address) -> Result<Arc<Node>> {
        if let Some(node) = self.map.load().node(addr) {
            return Ok(node.clone());
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::closed());
        }
        let node = self.open_node(addr)?;
        self.map.rcu(|map| {
            let mut nodes = map.nodes.clone();
            if map.node(addr).is_none() {
                nodes.push((addr.clone(), node.clone()));
            }
            Map { nodes, owners: map.owners.clone() }
        });
        Ok(self.map.load().node(addr).cloned().unwrap_or(node))
    }

    /// Has the cluster asked again who has what, soon and in the background: a call found something changed.
    pub(super) fn suspect(self: &Arc<Self>) {
        if self.closed.load(Ordering::Acquire) || self.learning.swap(true, Ordering::AcqRel) {
            return;
        }
        let cluster = self.clone();
        tokio::spawn(async move {
            let _learning = Learning(&cluster);
            let _ = cluster.learn().await;
            tokio::time::sleep(PAUSE).await;
        });
    }

    /// Asks the servers that are known, then the first ones, who has what.
    pub(super) async fn learn(&self) -> Result<()> {
        let mut why = None;
        let known: Vec<Address> = self.masters().into_iter().map(|(addr, _)| addr).collect();
        let addrs: Vec<&Address> = known.iter().chain(&self.seeds).collect();
        // One that is cut off from the others goes on telling what was.
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let patience = PATIENCE.max(self.config.dial_timeout / 2);
        for at in 0..addrs.len() {
            let told = tokio::time::timeout(patience, self.ask(addrs[(first + at) % addrs.len()])).await;
            match told.unwrap_or_else(|_| Err(silent())) {
                Ok(map) => {
                    self.publish(map);
                    return Ok(());
                }
                Err(error) => why = Some(why.unwrap_or(error)),
            }
        }
        Err(why.unwrap_or_else(Error::closed))
    }

    fn publish(&self, map: Map) {
        self.map.store(Arc::new(map));
        if self.closed.load(Ordering::Acquire) {
            self.close();
        }
    }

    async fn ask(&self, addr: &Address) -> Result<Map> {
        let node = match self.map.load().node(addr) {
            Some(node) => node.clone(),
            None => self.open_node(addr)?,
        };
        let mut lease = match node.pool(Effect::Read).ready(tokio::time::Instant::now()) {
            Some(lease) => lease,
            None => node.pool(Effect::Read).connection().await?,
        };
        let sent = tokio::time::Instant::now();
        let slots: Value = cmd("CLUSTER")
            .arg("SLOTS")
            .query_async(&mut lease.driver())
            .await
            .map_err(|error| error::of_request(&error, Effect::Read))?;
        lease.replied(sent, tokio::time::Instant::now());
        self.map_of(addr, slots)
    }

    /// Reads the reply of CLUSTER SLOTS: first slot, last slot, master, replicas.
    fn map_of(&self, from: &Address, slots: Value) -> Result<Map> {
        let wrong = || error::unexpected_reply(Effect::Read);
        let present = self.map.load();
        let mut map = Map { nodes: Vec::new(), owners: [NOBODY; SLOTS].into() };
        for range in reply::list(slots)? {
            let mut range = reply::list(range)?.into_iter();
            let (first, last) = match (range.next(), range.next()) {
                (Some(Value::Int(first)), Some(Value::Int(last))) => (first, last),
                _ => return Err(wrong()),
            };
            let mut master = reply::list(range.next().ok_or_else(wrong)?)?.into_iter();
            let name = reply::bytes(master.next().ok_or_else(wrong)?)?;
            let Some(Value::Int(port)) = master.next() else { return Err(wrong()) };
            let port = u16::try_from(port).map_err(|_| wrong())?;
            let name = name.map(String::from_utf8).transpose().map_err(|_| wrong())?;
            let addr = match (name.filter(|name| !name.is_empty() && name != "?"), from) {
                (Some(name), _) => Address::Host(name, port),
                (None, Address::Host(host, _)) => Address::Host(host.clone(), port),
                (None, Address::Socket(_)) => return Err(wrong()),
            };
            let index = match map.nodes.iter().position(|(known, _)| *known == addr) {
                Some(index) => index,
                None => {
                    let node = match present.node(&addr) {
                        Some(node) => node.clone(),
                        None => self.open_node(&addr)?,
                    };
                    map.nodes.push((addr, node));
                    map.nodes.len() - 1
                }
            };
            let index = u16::try_from(index).map_err(|_| wrong())?;
            let range = usize::try_from(first).ok().zip(usize::try_from(last).ok());
            let owners =
                range.and_then(|(first, last)| map.owners.get_mut(first..=last)).ok_or_else(wrong)?;
            owners.fill(index);
        }
        if map.nodes.is_empty() {
            return Err(Error::new(ErrorKind::Unavailable, "the Redis cluster has no slots assigned yet"));
        }
        Ok(map)
    }

    pub(super) fn warm(&self) {
        self.masters().iter().for_each(|(_, node)| node.warm());
    }

    pub(super) fn resize(&self, max: u32) -> Result<()> {
        let before = self.max.swap(max, Ordering::Relaxed);
        let resized = self.map.load().nodes.iter().try_for_each(|(_, node)| node.resize(max));
        // Only a wrong size fails, and the first node says so.
        resized.inspect_err(|_| self.max.store(before, Ordering::Relaxed))
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let map = self.map.swap(Arc::new(Map { nodes: Vec::new(), owners: [NOBODY; SLOTS].into() }));
        map.nodes.iter().for_each(|(_, node)| node.close());
    }
}

#[cold]
fn silent() -> Error {
    Error::new(ErrorKind::Timeout, "no server of the Redis cluster answers")
}

/// The end of an attempt to learn, however it comes.
struct Learning<'c>(&'c Cluster);

impl Drop for Learning<'_> {
    fn drop(&mut self) {
        self.0.learning.store(false, Ordering::Release);
    }
}

/// The slot of the key that a command is about: its first argument, or what follows a script and the number of its keys.
pub(super) fn slot(command: &Cmd) -> Result<u16> {
    let mut words = command.args_iter();
    let is_script = matches!(words.next(), Some(redis::Arg::Simple(b"EVAL")));
    match words.nth(if is_script { 2 } else { 0 }) {
        Some(redis::Arg::Simple(key)) => Ok(slot_of(key)),
        _ => Err(Error::new(ErrorKind::Internal, "a command without a key was sent to a cluster")),
    }
}

pub(super) fn slot_of(key: &[u8]) -> u16 {
    crc16::State::<crc16::XMODEM>::calculate(tag_of(key).unwrap_or(key)) % SLOTS as u16
}

/// The part of a key that says where it is, if not the whole does.
pub(super) fn tag_of(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|byte| *byte == b'{')?;
    let length = key[open + 1..].iter().position(|byte| *byte == b'}')?;
    Some(&key[open + 1..open + 1 + length]).filter(|tag| !tag.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16::State::<crc16::XMODEM>::calculate(b"123456789"), 0x31c3);
        // As CLUSTER KEYSLOT says.
        assert_eq!(slot_of(b"foo"), 12182);
        assert_eq!(slot_of(b"{foo}bar"), 12182);
        assert_eq!(slot_of(b"x{foo}{bar}"), 12182);
        assert_eq!(slot_of(b"foo{}{bar}"), 8363);
        assert_eq!(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"));
    }

    #[test]
    fn a_command_is_where_its_key_is() {
        assert_eq!(slot(cmd("GET").arg("foo")).unwrap(), 12182);
        assert_eq!(slot(cmd("EVAL").arg("return 1").arg(1).arg("foo").arg("x")).unwrap(), 12182);
        assert!(slot(&cmd("PING")).is_err());
    }
}
