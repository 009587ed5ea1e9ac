//! Leases: one document each, changed by `findAndModify` with a pipeline that compares `$$NOW`. The lease of
//! plans on a standalone server is one of them.
//!
//! A document: `{ _id: <name>, holder: <text>, number: <number>, lease: <its end> }`. A lease without a
//! holder rests.

use std::time::Duration;

use mongodb::{
    bson::{Bson, DateTime, Document, RawDocument, doc},
    options::{Acknowledgment, ReturnDocument, WriteConcern},
};
use tokio::time::Instant;

use super::{
    MongoDb,
    command::retry_upsert,
    document::{self, corrupt},
    error,
    pool::Permit,
    scan::collect,
    server::Call,
};
use crate::{
    Error, Key, Result,
    backend::remote::Effect,
    capability::Leases,
    model::{Claim, Holder, Lease, LeaseState, check_rest, check_ttl, lost},
};

pub(super) const LEASES: &str = "leases";

/// The field with the end, a date. It is the time at which the server may delete the document, an hour later.
pub(super) const END: &str = "lease";

/// A change of the document of one lease.
#[derive(Clone)]
pub(super) struct Change {
    query: Document,
    update: Vec<Document>,
    /// Whether the document is created if there is none.
    creates: bool,
}

/// The lowest number of a new lease is the server's clock in microseconds, so that numbers grow after a
/// document was deleted.
pub(super) fn by_clock() -> Bson {
    doc! { "$multiply": [{ "$toLong": "$$NOW" }, 1000_i64] }.into()
}

/// Leaves the document as it is if another holder has the lease, or if there is no next number. `lowest` is
/// an expression for the number of the first lease.
///
/// In a comparison a missing field is less than any date and any number.
pub(super) fn claim(name: &str, holder: &Holder, ttl: i64, lowest: impl Into<Bson>) -> Change {
    let holder = doc! { "$literal": holder.as_str() };
    let is_free = doc! { "$and": [{ "$lte": ["$lease", "$$NOW"] }, { "$lt": ["$number", i64::MAX] }] };
    let is_mine = doc! { "$and": [{ "$eq": ["$holder", holder.clone()] }, { "$gt": ["$lease", "$$NOW"] }] };
    let takes = doc! { "$or": [is_free.clone(), is_mine] };
    let next = doc! { "$max": [{ "$add": [{ "$ifNull": ["$number", 0_i64] }, 1_i64] }, lowest.into()] };
    let set = doc! { "$set": {
        "number": { "$cond": [is_free, next, "$number"] },
        "holder": { "$cond": [takes.clone(), holder, "$holder"] },
        "lease": { "$cond": [takes, { "$add": ["$$NOW", ttl] }, "$lease"] },
    } };
    Change { query: doc! { "_id": name }, update: vec![set], creates: true }
}

/// The number is compared, too: a version without holders leaves the field as it is in the lease of plans.
fn held(name: &str, holder: &Holder, number: i64) -> Document {
    doc! { "_id": name, "holder": holder.as_str(), "number": number }
}

pub(super) fn renew(name: &str, holder: &Holder, number: i64, ttl: i64) -> Change {
    let mut query = held(name, holder, number);
    query.insert("$expr", doc! { "$gt": ["$lease", "$$NOW"] });
    let set = doc! { "$set": { "lease": { "$add": ["$$NOW", ttl] } } };
    Change { query, update: vec![set], creates: false }
}

pub(super) fn release(name: &str, holder: &Holder, number: i64, rest: i64) -> Change {
    let set = doc! { "$set": { "lease": { "$add": ["$$NOW", rest] } } };
    let update = vec![set, doc! { "$unset": "holder" }];
    Change { query: held(name, holder, number), update, creates: false }
}

/// What is returned of the document after a change.
fn fields() -> Document {
    doc! { "holder": 1, "number": 1, "lease": 1, "now": "$$NOW" }
}

impl Change {
    /// As a command, whose reply has the document in `value`.
    pub(super) fn command(self, collection: &str) -> Document {
        doc! {
            "findAndModify": collection, "query": self.query, "update": self.update, "upsert": self.creates,
            "new": true, "fields": fields(),
        }
    }
}

/// The answer to a claim.
pub(super) enum Claimed {
    Yours { number: i64, now: DateTime },
    Theirs { left: Duration },
}

/// Reads the document after a claim.
pub(super) fn claimed(found: &Document, holder: &Holder) -> Result<Claimed> {
    let found = Stored::read(found)?;
    match found.left() {
        left if left.is_zero() => Err(unreadable()),
        _ if found.holder == Some(holder.as_str()) => {
            Ok(Claimed::Yours { number: found.number?, now: found.now })
        }
        left => Ok(Claimed::Theirs { left }),
    }
}

/// A document as it was returned.
struct Stored<'d> {
    holder: Option<&'d str>,
    number: Result<i64>,
    end: DateTime,
    now: DateTime,
}

impl<'d> Stored<'d> {
    fn read(found: &'d Document) -> Result<Self> {
        let number = match found.get("number") {
            Some(Bson::Int64(number)) => Ok(*number),
            Some(Bson::Int32(number)) => Ok((*number).into()),
            _ => Err(unreadable()),
        };
        let holder = match found.get("holder") {
            None | Some(Bson::Null) => None,
            Some(holder) => Some(holder.as_str().ok_or_else(unreadable)?),
        };
        let end = *found.get_datetime(END).map_err(|_| unreadable())?;
        let now = *found.get_datetime("now").map_err(|_| error::unexpected_reply(Effect::Read))?;
        Ok(Self { holder, number, end, now })
    }

    fn left(&self) -> Duration {
        let millis = self.end.timestamp_millis().saturating_sub(self.now.timestamp_millis());
        Duration::from_millis(millis.try_into().unwrap_or(0))
    }
}

/// A document of another program.
#[cold]
fn unreadable() -> Error {
    corrupt("the stored lease can't be read")
}

fn number(number: i64) -> Result<u64> {
    number.try_into().map_err(|_| unreadable())
}

/// A number of milliseconds that was checked.
fn millis(millis: u64) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX)
}

/// The majority acknowledges, whatever the options say: a lease that a failover can undo is of no use.
fn concern(permit: &Permit) -> WriteConcern {
    let mut concern = permit.write_concern.clone();
    concern.w = Some(Acknowledgment::Majority);
    concern
}

/// Makes a change. Also returns the instant before it was sent, and the document after it. None: the document
/// does not match.
async fn send(call: &Call<'_>, change: &Change) -> Result<(Instant, Option<Document>)> {
    let permit = call.permit().await?;
    let sent_at = Instant::now();
    let request = |permit: Permit| {
        let (change, max_time) = (change.clone(), call.server_time());
        async move {
            let send = || {
                let Change { query, update, creates } = change.clone();
                let send = permit.leases.find_one_and_update(query, update).upsert(creates);
                let send = send.return_document(ReturnDocument::After).projection(fields());
                send.write_concern(concern(&permit)).max_time(max_time)
            };
            retry_upsert(send).await
        }
    };
    let found = call.write(permit, request).await?;
    let found = found.map(|found| Document::try_from(&*found).map_err(document::damaged)).transpose()?;
    Ok((sent_at, found))
}

impl MongoDb {
    async fn claim(&self, name: &Key, holder: &Holder, ttl: u64) -> Result<Claim> {
        let change = claim(name.as_str(), holder, millis(ttl), by_clock());
        let (sent_at, found) = send(&self.call()?, &change).await?;
        let found = found.ok_or_else(|| error::unexpected_reply(Effect::Write))?;
        Ok(match claimed(&found, holder)? {
            Claimed::Theirs { left } => Claim::Theirs { left },
            Claimed::Yours { number: found, .. } => {
                let ends = sent_at + Duration::from_millis(ttl);
                Claim::Yours(Lease::new(name.clone(), holder.clone(), number(found)?, ends))
            }
        })
    }

    /// Changes the document of a lease. None: it has another holder or number, or it was to be renewed and
    /// has ended.
    async fn change(
        &self,
        lease: &Lease,
        change: impl Fn(&str, &Holder, i64, i64) -> Change,
        time: u64,
    ) -> Result<Option<Instant>> {
        // No stored number is larger.
        let Ok(number) = i64::try_from(lease.number()) else { return Ok(None) };
        let change = change(lease.name().as_str(), lease.holder(), number, millis(time));
        let sent = send(&self.call()?, &change).await;
        let (sent_at, found) = sent.map_err(|error| error.with_key(lease.name()))?;
        Ok(found.map(|_| sent_at))
    }
}

impl Leases for MongoDb {
    async fn claim_lease(&self, name: &Key, holder: &Holder, ttl: Duration) -> Result<Claim> {
        self.claim(name, holder, check_ttl(ttl)?).await.map_err(|error| error.with_key(name))
    }

    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<Lease> {
        let ttl = check_ttl(ttl)?;
        let sent_at = self.change(lease, renew, ttl).await?.ok_or_else(|| lost(lease.name()))?;
        let ends = sent_at + Duration::from_millis(ttl);
        Ok(Lease::new(lease.name().clone(), lease.holder().clone(), lease.number(), ends))
    }

    async fn release_lease(&self, lease: &Lease, rest: Duration) -> Result<()> {
        self.change(lease, release, check_rest(rest)?).await.map(drop)
    }

    async fn list_leases(&self) -> Result<Vec<LeaseState>> {
        let call = self.call()?;
        let list = |permit: Permit| async move {
            let current = doc! { "$expr": { "$gt": ["$lease", "$$NOW"] } };
            let find = permit.leases.find(current).projection(fields()).sort(doc! { "_id": 1 });
            collect(&permit, find.batch_size(1000), state).await
        };
        call.read(list).await?
    }
}

fn state(found: &RawDocument) -> Result<LeaseState> {
    let name = document::key(found)?;
    let state = || {
        let found = Document::try_from(found).map_err(document::damaged)?;
        let found = Stored::read(&found)?;
        let left = found.left();
        let holder = found.holder.map(str::parse).transpose().map_err(|_| unreadable())?;
        Ok(LeaseState::new(name.clone(), holder, number(found.number?)?, left))
    };
    state().map_err(|error: Error| error.with_key(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_claim_is_read_from_the_document_after_it() {
        let (mine, now) = ("mine".parse::<Holder>().unwrap(), DateTime::from_millis(1000));
        let of = |holder: &str, number: Bson, end: i64| {
            let end = DateTime::from_millis(end);
            claimed(&doc! { "holder": holder, "number": number, "lease": end, "now": now }, &mine)
        };
        assert!(matches!(of("mine", Bson::Int32(7), 1001), Ok(Claimed::Yours { number: 7, .. })));
        let theirs = of("other", Bson::Int64(7), 3000);
        assert!(matches!(theirs, Ok(Claimed::Theirs { left }) if left == Duration::from_secs(2)));
        // The change did not take a lease that has ended.
        for (holder, number, end) in [
            ("other", Bson::Int64(i64::MAX), 1000),
            ("other", Bson::String("x".into()), 999),
            ("mine", Bson::Double(1.5), 2000),
        ] {
            assert_eq!(of(holder, number, end).map(drop).unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }
}
