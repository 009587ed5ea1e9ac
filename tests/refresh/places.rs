//! A store and a provider with the same accounts, and what must be true of both.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use gateway_storage::Storage;
use serde_json::json;
use testkit::provider::{Provider, Use};

use crate::{
    refresh_one::{Ended, Job, Refreshable, is_rejected},
    worker::Done,
};

/// The id of a credential, which is also the name of its account at the provider.
pub(crate) fn id(account: u64) -> String {
    format!("account-{account}")
}

pub(crate) struct Place<B> {
    pub(crate) storage: Storage<B>,
    pub(crate) provider: Provider,
    pub(crate) accounts: u64,
    pub(crate) lease: Duration,
    pub(crate) wait: Duration,
}

impl<B: Refreshable> Place<B> {
    /// All accounts are logged in.
    pub(crate) async fn new(storage: Storage<B>, accounts: u64) -> Self {
        let provider = Provider::start().await;
        let (lease, wait) = (Duration::from_secs(30), Duration::from_secs(60));
        let place = Self { storage, provider, accounts, lease, wait };
        for account in 0..accounts {
            place.log_in(account).await;
        }
        place
    }

    /// A new family.
    pub(crate) async fn log_in(&self, account: u64) {
        let tokens = self.provider.log_in(&id(account));
        let credential = json!({
            "access_token": tokens.access_token,
            "refresh_token": tokens.refresh_token,
            "round": 0,
            "quota": 0,
        });
        self.storage.set_credential(id(account), credential).await.unwrap();
    }

    pub(crate) fn job(&self, client: &str) -> Job {
        Job {
            provider: self.provider.address().to_owned(),
            client: client.to_owned(),
            lease: self.lease,
            wait: self.wait,
            is_protected: crate::is_protected(),
        }
    }

    /// Compares the store with the provider, and returns the accounts whose family is revoked.
    pub(crate) async fn check(&self) -> Vec<u64> {
        let mut revoked = Vec::new();
        for account in 0..self.accounts {
            let stored = self.storage.get_credential(id(account)).await.unwrap();
            if self.provider.is_revoked(&id(account)) {
                revoked.push(account);
                continue;
            }
            assert!(!is_rejected(&stored), "account {account} is marked as rejected, and is not");
            let current = self.provider.current(&id(account));
            let fields = stored.fields();
            assert!(
                fields["refresh_token"] == current.refresh_token,
                "account {account}: a new token is lost"
            );
            assert!(
                fields["access_token"] == current.access_token,
                "account {account}: two tokens are mixed"
            );
        }
        revoked
    }

    /// Checks that each account got one new token, and each of the workers all of these.
    pub(crate) async fn check_one_each(&self, workers: &[Vec<Done>]) {
        let total = self.provider.total();
        assert_eq!((total.grants, total.reuses), (self.accounts, 0), "grants and reuses");
        assert_eq!(self.check().await, [0; 0]);
        for done in workers {
            assert_eq!(done.len() as u64, self.accounts);
            for Done { account, ended, .. } in done {
                let current = self.provider.current(&id(*account)).access_token;
                let has_it = [Ended::Fresh, Ended::Mine, Ended::Theirs].map(|new| new(current.clone()));
                assert!(has_it.contains(ended), "account {account}: a caller got another token");
            }
        }
    }
}

/// The reuses in which none of these clients took part, neither at the first use of the token nor at the
/// second.
pub(crate) fn unexplained(uses: &[Use], culprits: &HashSet<String>) -> usize {
    let mut first = HashMap::new();
    let mut count = 0;
    for Use { account, client, spent, granted, .. } in uses {
        if granted.is_some() {
            first.insert((account, spent), client);
        } else {
            let first = first.get(&(account, spent)).is_some_and(|first| culprits.contains(*first));
            count += usize::from(!first && !culprits.contains(client));
        }
    }
    count
}

/// Prints how long the callers waited: those that refreshed, and those that got what others had refreshed.
pub(crate) fn print_waits(what: &str, done: impl IntoIterator<Item = Done>) {
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    for Done { ended, time, .. } in done {
        match ended {
            Ended::Mine(_) => mine.push(time),
            Ended::Theirs(_) => theirs.push(time),
            _ => {}
        }
    }
    let percentiles = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
        format!("{} (median {:.1?}, p99 {:.1?})", times.len(), at(50), at(99))
    };
    println!("{what}: {} refreshed, {} waited", percentiles(&mut mine), percentiles(&mut theirs));
}
