//! A provider of tokens, over HTTP on loopback: refresh tokens are used once, and a second use revokes the
//! account's family, as with many real providers. [`refresh`] is its client.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use gateway_storage::conformance::CANARY;

mod client;
mod server;

pub use client::{Refusal, Tokens, refresh, refresh_as};

/// What the provider does with one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Answer {
    /// Grants, or refuses a token that is not valid, as without a plan.
    Usual,
    /// Waits this long, and grants then.
    Slow(Duration),
    /// Grants, and replies this much later.
    Late(Duration),
    /// Closes the connection. The token is not spent.
    LoseRequest,
    /// Grants, and closes the connection. The token is spent.
    LoseReply,
    /// Grants, and closes the connection in the middle of the reply. The token is spent.
    CutReply,
    /// Replies 429, with this time in whole seconds as `Retry-After`. The token is not spent.
    TooMany(Duration),
    /// Replies 500. The token is not spent.
    Fail,
    /// Replies `invalid_grant`, although the token is valid. It is not spent.
    Refuse,
}

/// How often something happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests for tokens. Those with a token that was never issued count in the total only.
    pub requests: u64,
    /// New tokens.
    pub grants: u64,
    /// Uses of a spent token while its family was valid. Each revoked the family.
    pub reuses: u64,
    /// Uses of a spent token that got the same tokens again, in the time of [`Provider::forgive`].
    pub forgiven: u64,
}

/// One use of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The account.
    pub account: String,
    /// The `client_id` of the request.
    pub client: String,
    /// The generation of the token that was sent.
    pub spent: u64,
    /// The generation of the new token. None: the token was spent before, so the family was revoked.
    pub granted: Option<u64>,
    /// The time of the decision, which is before the reply.
    pub at: Instant,
}

/// The provider. It serves until its runtime ends.
#[derive(Clone)]
pub struct Provider {
    address: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    accounts: BTreeMap<String, Account>,
    /// The account and the generation of each refresh token.
    issued: HashMap<String, (String, u64)>,
    plan: VecDeque<Answer>,
    latency: Duration,
    grace: Duration,
    total: Counts,
    uses: Vec<Use>,
}

/// Its tokens have generations. A family is those since the last login.
struct Account {
    family: u64,
    generation: u64,
    current: Issued,
    is_revoked: bool,
    /// The time of the last grant.
    granted: Option<Instant>,
    plan: VecDeque<Answer>,
    counts: Counts,
}

/// The tokens of a generation.
#[derive(Clone)]
struct Issued {
    access: String,
    refresh: String,
}

impl Issued {
    fn new(account: &str, generation: u64) -> Self {
        let random = fastrand::u128(..);
        Self {
            access: format!("{}-{account}-{generation}-{random:032x}", CANARY[0]),
            refresh: format!("{}-{account}-{generation}-{random:032x}", CANARY[1]),
        }
    }
}

impl Provider {
    /// Starts it on a free port, on the current runtime. Usual answers come at once.
    pub async fn start() -> Self {
        let state = Arc::default();
        Self { address: server::start(Arc::clone(&state)).await, state }
    }

    /// `HOST:PORT`
    pub fn address(&self) -> &str {
        &self.address
    }

    fn lock<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap())
    }

    fn with<T>(&self, account: &str, act: impl FnOnce(&mut Account) -> T) -> T {
        self.lock(|state| act(state.accounts.get_mut(account).expect("the account has logged in")))
    }

    /// Begins a new family, as a login does. The account is created if it is new. Earlier tokens are not
    /// valid any more.
    pub fn log_in(&self, account: &str) -> Tokens {
        self.lock(|state| {
            let known = state.accounts.remove(account);
            let generation = known.as_ref().map_or(1, |account| account.generation + 1);
            let current = Issued::new(account, generation);
            state.issued.insert(current.refresh.clone(), (account.to_owned(), generation));
            let (plan, counts) = known.map(|account| (account.plan, account.counts)).unwrap_or_default();
            let tokens = Tokens::of(&current);
            let (family, is_revoked, granted) = (generation, false, None);
            let new = Account { family, generation, current, is_revoked, granted, plan, counts };
            state.accounts.insert(account.to_owned(), new);
            tokens
        })
    }

    /// Revokes the family of an account, as its owner can at any time.
    pub fn revoke(&self, account: &str) {
        self.with(account, |account| account.is_revoked = true);
    }

    /// Whether the family of an account is revoked.
    pub fn is_revoked(&self, account: &str) -> bool {
        self.with(account, |account| account.is_revoked)
    }

    /// The newest tokens of an account.
    pub fn current(&self, account: &str) -> Tokens {
        self.with(account, |account| Tokens::of(&account.current))
    }

    /// The generation of the newest tokens of an account.
    pub fn generation(&self, account: &str) -> u64 {
        self.with(account, |account| account.generation)
    }

    /// Plans the answers to the next requests.
    pub fn plan(&self, answers: impl IntoIterator<Item = Answer>) {
        self.lock(|state| state.plan.extend(answers));
    }

    /// Plans the answers to the next requests of an account. They come before those for all accounts.
    pub fn plan_for(&self, account: &str, answers: impl IntoIterator<Item = Answer>) {
        self.with(account, |account| account.plan.extend(answers));
    }

    /// Makes each usual answer wait a random time up to this one before the grant, and again after it.
    pub fn set_latency(&self, longest: Duration) {
        self.lock(|state| state.latency = longest);
    }

    /// Answers a spent token with the newest tokens again, for this time after they were granted, if it is
    /// the one before them.
    pub fn forgive(&self, grace: Duration) {
        self.lock(|state| state.grace = grace);
    }

    /// The counts of all accounts together.
    pub fn total(&self) -> Counts {
        self.lock(|state| state.total)
    }

    /// The counts of one account.
    pub fn counts(&self, account: &str) -> Counts {
        self.with(account, |account| account.counts)
    }

    /// The grants and reuses since the last call, in their order.
    pub fn take_uses(&self) -> Vec<Use> {
        self.lock(|state| std::mem::take(&mut state.uses))
    }
}

impl State {
    fn count(&mut self, account: Option<&str>, count: impl Fn(&mut Counts)) {
        count(&mut self.total);
        if let Some(account) = account.and_then(|account| self.accounts.get_mut(account)) {
            count(&mut account.counts);
        }
    }

    /// Counts a request, and returns what is planned for it.
    fn planned(&mut self, token: &str) -> Answer {
        let account = self.issued.get(token).map(|(account, _)| account.clone());
        self.count(account.as_deref(), |counts| counts.requests += 1);
        let own = account.and_then(|account| self.accounts.get_mut(&account)?.plan.pop_front());
        own.or_else(|| self.plan.pop_front()).unwrap_or(Answer::Usual)
    }

    /// Spends a token. None: `invalid_grant`.
    fn grant(&mut self, token: &str, client: &str) -> Option<Issued> {
        let (name, spent) = self.issued.get(token)?.clone();
        let (account, now) = (self.accounts.get_mut(&name)?, Instant::now());
        if account.is_revoked || spent < account.family {
            return None;
        }
        let is_forgiven = spent + 1 == account.generation
            && account.granted.is_some_and(|granted| now < granted + self.grace);
        if is_forgiven {
            let again = account.current.clone();
            self.count(Some(&name), |counts| counts.forgiven += 1);
            return Some(again);
        }
        let granted = (spent == account.generation).then_some(spent + 1);
        let issued = granted.map(|generation| Issued::new(&name, generation));
        if let (Some(generation), Some(issued)) = (granted, &issued) {
            self.issued.insert(issued.refresh.clone(), (name.clone(), generation));
            (account.generation, account.granted, account.current) = (generation, Some(now), issued.clone());
            self.count(Some(&name), |counts| counts.grants += 1);
        } else {
            account.is_revoked = true;
            self.count(Some(&name), |counts| counts.reuses += 1);
        }
        self.uses.push(Use { account: name, client: client.to_owned(), spent, granted, at: now });
        issued
    }
}
