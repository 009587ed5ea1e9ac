//! The servers of a cluster and the hash slots that they own.
//!
//! By the [cluster specification](https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/)
//! a key belongs to one of 16,384 slots, and a slot to one master. A server that does not own a key's slot
//! redirects the client.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use redis::{Value, cmd};
use tokio::sync::Mutex;

use super::{
    RedisOptions,
    address::Address,
    connection::Settings,
    error,
    node::Node,
    reply,
    slot::{self, SLOTS},
    target::Target,
};
use crate::{Error, ErrorKind, Result, backend::remote::Effect};

pub(super) struct Cluster {
    settings: Arc<Settings>,
    options: RedisOptions,
    seeds: Vec<Address>,
    max: AtomicU32,
    map: ArcSwap<Map>,
    refreshing: Arc<Mutex<()>>,
    next_server: AtomicUsize,
    closed: AtomicBool,
}

/// Which server owns which slots.
struct Map {
    nodes: Vec<Arc<Node>>,
    /// For each slot an index into `nodes`, or [`UNASSIGNED`].
    owners: Box<[u16]>,
}

const UNASSIGNED: u16 = u16::MAX;

impl Map {
    fn empty() -> Self {
        Self { nodes: Vec::new(), owners: [UNASSIGNED; SLOTS].into() }
    }

    fn node(&self, addr: &Address) -> Option<&Arc<Node>> {
        self.nodes.iter().find(|node| node.addr() == Some(addr))
    }
}

/// The server that a command must be sent to.
pub(super) struct Redirect {
    pub(super) node: Arc<Node>,
    /// The server is importing the slot, and accepts the command only after ASKING.
    pub(super) asking: bool,
}

/// The slots of one server, or the slots that no server owns.
#[derive(Default)]
pub(super) struct SlotGroup {
    pub(super) slots: usize,
    /// A name in one of the slots, if they have a server.
    pub(super) name: Option<String>,
}

/// With this many names the search misses a master that owns a single slot once in about ten million times.
const MAX_NAMES: usize = 1 << 18;

/// The reply of a cluster's server.
pub(super) enum Reply {
    Final(Value),
    /// The command was not applied, and must be sent to another server.
    Redirected(Redirect),
}

#[cold]
pub(super) fn too_many_redirects() -> Error {
    Error::new(ErrorKind::Unavailable, "the Redis cluster is moving slots between its servers")
}

/// How often a command is redirected before it fails.
pub(super) const MAX_REDIRECTS: usize = 8;

/// How long one server may take to report the slots before the next server is asked.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(1);

/// The pause between two refreshes.
const REFRESH_PAUSE: Duration = Duration::from_millis(100);

impl Cluster {
    pub(super) fn new(settings: Arc<Settings>, seeds: Vec<Address>, options: &RedisOptions) -> Self {
        Self {
            settings,
            options: options.clone(),
            seeds,
            max: AtomicU32::new(options.pool_size),
            map: ArcSwap::from_pointee(Map::empty()),
            refreshing: Arc::default(),
            next_server: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        }
    }

    fn open_node(&self, addr: &Address) -> Result<Arc<Node>> {
        let target = Target::Server(addr.clone());
        Node::new(&self.settings, target, &self.options, self.max.load(Ordering::Relaxed)).map(Arc::new)
    }

    /// The master of a slot.
    pub(super) fn owner(&self, slot: u16) -> Result<Arc<Node>> {
        let map = self.map.load();
        match map.nodes.get(usize::from(map.owners[usize::from(slot)])) {
            Some(node) => Ok(node.clone()),
            None if self.closed.load(Ordering::Acquire) => Err(Error::closed()),
            None => {
                Err(Error::new(ErrorKind::Unavailable, "no server of the Redis cluster owns this key's slot"))
            }
        }
    }

    /// All masters.
    pub(super) fn masters(&self) -> Vec<Arc<Node>> {
        let map = self.map.load();
        let owns_slots = |index: usize| map.owners.iter().any(|owner| usize::from(*owner) == index);
        (0..map.nodes.len())
            .filter(|index| owns_slots(*index))
            .map(|index| map.nodes[index].clone())
            .collect()
    }

    /// The slots of each master, with one of these names in each group; and last the slots without a server.
    pub(super) fn slot_groups(&self, names: impl Iterator<Item = String>) -> Vec<SlotGroup> {
        let map = self.map.load();
        let mut groups: Vec<SlotGroup> = (0..=map.nodes.len()).map(|_| SlotGroup::default()).collect();
        let index = |owner: u16| usize::from(owner).min(map.nodes.len());
        map.owners.iter().for_each(|owner| groups[index(*owner)].slots += 1);
        let mut names = names.take(MAX_NAMES);
        let is_unnamed = |group: &SlotGroup| group.slots > 0 && group.name.is_none();
        while groups[..map.nodes.len()].iter().any(is_unnamed)
            && let Some(name) = names.next()
        {
            let owner = map.owners[usize::from(slot::of_key(name.as_bytes()))];
            groups[index(owner)].name.get_or_insert(name);
        }
        groups[map.nodes.len()].name = None;
        groups.retain(|group| group.slots > 0);
        groups
    }

    /// Tells a redirection from a final reply.
    pub(super) fn redirect(self: &Arc<Self>, reply: Value, from: &Arc<Node>) -> Result<Reply> {
        let Value::ServerError(error) = &reply else { return Ok(Reply::Final(reply)) };
        let asking = match error.code() {
            "MOVED" => false,
            "ASK" => true,
            _ => return Ok(Reply::Final(reply)),
        };
        if !asking {
            self.refresh_soon();
        }
        let addr = error.details().and_then(|details| details.split_once(' ')?.1.rsplit_once(':'));
        let addr = addr.and_then(|(name, port)| addr_of(name, port.parse().ok()?, from.addr()?));
        let addr = addr.ok_or_else(too_many_redirects)?;
        Ok(Reply::Redirected(Redirect { node: self.node(&addr)?, asking }))
    }

    /// Refreshes the map after an error that may mean that another server owns the slot now.
    pub(super) fn refresh_after(self: &Arc<Self>, error: &Error) {
        if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) {
            self.refresh_soon();
        }
    }

    /// The server at this address. A new one is added to the map.
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
                nodes.push(node.clone());
            }
            Map { nodes, owners: map.owners.clone() }
        });
        Ok(self.map.load().node(addr).cloned().unwrap_or(node))
    }

    /// Refreshes the map in the background, unless a refresh is already running.
    fn refresh_soon(self: &Arc<Self>) {
        let Ok(refreshing) = self.refreshing.clone().try_lock_owned() else { return };
        if self.closed.load(Ordering::Acquire) {
            return;
        }
        let cluster = self.clone();
        tokio::spawn(async move {
            let _refreshing = refreshing;
            let _ = cluster.refresh().await;
            tokio::time::sleep(REFRESH_PAUSE).await;
        });
    }

    /// Asks the known masters and the seeds, one after another, which server owns which slots.
    pub(super) async fn refresh(&self) -> Result<()> {
        let mut failure = None;
        let known = self.masters();
        let addrs: Vec<&Address> = known.iter().filter_map(|node| node.addr()).chain(&self.seeds).collect();
        // Begins with another server each time: one that is cut off from the others reports an old map.
        let first = self.next_server.fetch_add(1, Ordering::Relaxed);
        let timeout = REFRESH_TIMEOUT.max(self.options.dial_timeout / 2);
        let late = "timed out waiting for a server of the Redis cluster to report its slots";
        for at in 0..addrs.len() {
            let map = tokio::time::timeout(timeout, self.fetch_map(addrs[(first + at) % addrs.len()])).await;
            match map.unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, late))) {
                Ok(map) => {
                    self.map.store(Arc::new(map));
                    if self.closed.load(Ordering::Acquire) {
                        self.close();
                    }
                    return Ok(());
                }
                Err(error) => failure = Some(failure.unwrap_or(error)),
            }
        }
        Err(failure.unwrap_or_else(Error::closed))
    }

    async fn fetch_map(&self, addr: &Address) -> Result<Map> {
        let node = match self.map.load().node(addr) {
            Some(node) => node.clone(),
            None => self.open_node(addr)?,
        };
        let mut connection = node.shared.connection().await?;
        let slots: Value = cmd("CLUSTER")
            .arg("SLOTS")
            .query_async(&mut connection.driver())
            .await
            .map_err(|error| error::of_request(&error, Effect::Read))?;
        connection.replied();
        self.map_of(addr, slots)
    }

    /// Decodes the reply to CLUSTER SLOTS: first slot, last slot, master, replicas.
    fn map_of(&self, from: &Address, slots: Value) -> Result<Map> {
        let unexpected = || error::unexpected_reply(Effect::Read);
        let present = self.map.load();
        let mut map = Map::empty();
        for range in reply::list(slots)? {
            let range = reply::list(range)?;
            let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &range[..] else {
                return Err(unexpected());
            };
            let (name, port) = match &master[..] {
                [Value::BulkString(name), Value::Int(port), ..] => (&name[..], port),
                [Value::Nil, Value::Int(port), ..] => (&b""[..], port),
                _ => return Err(unexpected()),
            };
            let name = std::str::from_utf8(name).map_err(|_| unexpected())?;
            let port = u16::try_from(*port).map_err(|_| unexpected())?;
            let addr = addr_of(name, port, from).ok_or_else(unexpected)?;
            let index = match map.nodes.iter().position(|node| node.addr() == Some(&addr)) {
                Some(index) => index,
                None => {
                    map.nodes.push(present.node(&addr).cloned().map_or_else(|| self.open_node(&addr), Ok)?);
                    map.nodes.len() - 1
                }
            };
            let index = u16::try_from(index).map_err(|_| unexpected())?;
            let range = usize::try_from(*first).ok().zip(usize::try_from(*last).ok());
            let owners = range.and_then(|(first, last)| map.owners.get_mut(first..=last));
            owners.ok_or_else(unexpected)?.fill(index);
        }
        if map.nodes.is_empty() {
            return Err(Error::new(ErrorKind::Unavailable, "the Redis cluster has no slots assigned yet"));
        }
        Ok(map)
    }

    pub(super) fn resize(&self, max: u32) -> Result<()> {
        self.max.store(max, Ordering::Relaxed);
        self.map.load().nodes.iter().try_for_each(|node| node.resize(max))
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.map.swap(Arc::new(Map::empty())).nodes.iter().for_each(|node| node.close());
    }
}

/// The address of a server, as this one names it. A server that does not know its own name omits it.
fn addr_of(name: &str, port: u16, from: &Address) -> Option<Address> {
    match (name, from) {
        ("" | "?", Address::Host(host, _)) => Some(Address::Host(host.clone(), port)),
        ("" | "?", Address::Socket(_)) => None,
        _ => Some(Address::Host(name.to_owned(), port)),
    }
}
