//! Batches of increments: each counter is sent once, and each increment gets its own total.

use std::collections::BTreeMap;

use crate::{Error, ErrorKind, Increment, Key, Outcome, Result, model::Totals};

/// Increments of one counter with the same sign, which are sent as one.
pub(crate) struct Sum<'i> {
    pub(crate) key: &'i Key,
    pub(crate) field: &'i Key,
    pub(crate) total: i64,
    /// The indexes of the increments in the request.
    steps: Vec<usize>,
}

/// The result of one increment, and its index in the request.
pub(crate) type Step = (usize, Result<i64>);

impl<'i> Sum<'i> {
    fn of(step: usize, Increment { key, field, delta }: &'i Increment) -> Self {
        Self { key, field, total: *delta, steps: vec![step] }
    }

    /// The total of each step, from that of the last.
    fn counted(&self, mut total: i64, increments: &[Increment]) -> impl Iterator<Item = Step> {
        self.steps.iter().rev().map(move |&step| {
            let counted = (step, Ok(total));
            total = total.wrapping_sub(increments[step].delta);
            counted
        })
    }

    /// The same error for each step.
    pub(crate) fn failed(&self, error: &Error) -> impl Iterator<Item = Step> {
        let error = error.clone().with_key(self.key);
        self.steps.iter().map(move |&step| (step, Err(error.clone())))
    }
}

/// Sums the increments of each counter, and sorts the sums. While all have the same sign, the sum overflows
/// only if one of the steps would. An increment of the other sign goes into the next pass, which is a later
/// request.
pub(crate) fn passes(increments: &[Increment]) -> Vec<Vec<Sum<'_>>> {
    let mut passes: Vec<BTreeMap<(&Key, &Key), Sum<'_>>> = Vec::new();
    let mut latest: BTreeMap<(&Key, &Key), usize> = BTreeMap::new();
    for (index, increment) in increments.iter().enumerate() {
        let Increment { key, field, delta } = increment;
        let counter = (key, field);
        let pass = latest.entry(counter).or_insert(0);
        let known = passes.get_mut(*pass).and_then(|sums| sums.get_mut(&counter));
        if let Some(sum) = known {
            let changes_sign = (sum.total < 0 && *delta > 0) || (sum.total > 0 && *delta < 0);
            if let Some(total) = sum.total.checked_add(*delta).filter(|_| !changes_sign) {
                sum.total = total;
                sum.steps.push(index);
                continue;
            }
            *pass += 1;
        }
        if passes.len() == *pass {
            passes.push(BTreeMap::new());
        }
        passes[*pass].insert(counter, Sum::of(index, increment));
    }
    passes.into_iter().map(|sums| sums.into_values().collect()).collect()
}

/// Adds sums of different counters.
pub(crate) trait Add: Sync {
    /// The errors of [`add`](Self::add) of which one sum can be the cause.
    const OF_ONE_SUM: &'static [ErrorKind];

    /// Adds all of the sums, or none, and returns the new totals in their order.
    fn add(&self, sums: &[Sum<'_>]) -> impl Future<Output = Result<Vec<i64>>> + Send;
}

/// Whether a part of the sums may succeed.
pub(crate) fn is_of_one_sum<A: Add>(error: &Error) -> bool {
    error.outcome() == Outcome::NotApplied && A::OF_ONE_SUM.contains(&error.kind())
}

/// The result of each step of the sums, from their new totals or the error of all.
pub(crate) fn results<'s>(
    sums: impl IntoIterator<Item = &'s Sum<'s>>,
    totals: Result<Vec<i64>>,
    increments: &[Increment],
) -> Vec<Step> {
    let sums = sums.into_iter();
    match totals {
        Ok(totals) => sums.zip(totals).flat_map(|(sum, total)| sum.counted(total, increments)).collect(),
        Err(error) => sums.flat_map(|sum| sum.failed(&error).collect::<Vec<_>>()).collect(),
    }
}

/// Adds sums together, and returns the result of each step. If one of them is the cause of a failure, halves
/// them to find it, and then adds its steps one after another.
pub(crate) async fn apply<A: Add>(to: &A, sums: &[Sum<'_>], increments: &[Increment]) -> Vec<Step> {
    let (mut steps, mut parts) = (Vec::new(), vec![sums]);
    while let Some(part) = parts.pop() {
        match (part, to.add(part).await) {
            ([_, _, ..], Err(error)) if is_of_one_sum::<A>(&error) => {
                let (left, right) = part.split_at(part.len() / 2);
                parts.extend([right, left]);
            }
            ([sum], Err(error)) if is_of_one_sum::<A>(&error) && sum.steps.len() > 1 => {
                for &step in &sum.steps {
                    let one = [Sum::of(step, &increments[step])];
                    let added = to.add(&one).await;
                    steps.extend(results(&one, added, increments));
                }
            }
            (_, added) => steps.extend(results(part, added, increments)),
        }
    }
    steps
}

/// The totals of a batch, from the result of each increment in any order.
pub(crate) fn totals(increments: &[Increment], mut steps: Vec<Step>) -> Result<Totals> {
    steps.sort_unstable_by_key(|(step, _)| *step);
    let results = steps.into_iter().map(|(step, result)| (&increments[step].key, result));
    Totals::collect(results).settle()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn steps(deltas: &[i64]) -> Vec<Increment> {
        let (key, field) = (Key::new("k").unwrap(), Key::new("f").unwrap());
        deltas.iter().map(|delta| Increment::new(&key, &field, *delta)).collect()
    }

    fn totals_of(deltas: &[i64]) -> Vec<i64> {
        passes(&steps(deltas)).iter().map(|sums| sums[0].total).collect()
    }

    #[test]
    fn increments_of_one_sign_share_a_pass() {
        assert_eq!(totals_of(&[]), [] as [i64; 0]);
        assert_eq!(totals_of(&[1, 0, 2, 3]), [6]);
        assert_eq!(totals_of(&[0, -2, 0, -3]), [-5]);
        assert_eq!(totals_of(&[5, -5, -1, 2]), [5, -6, 2]);
        assert_eq!(totals_of(&[i64::MAX, 1, i64::MIN]), [i64::MAX, 1, i64::MIN]);
    }

    #[test]
    fn counters_are_sorted_within_a_pass() {
        let step = |key: &str, delta| Increment::new(&Key::new(key).unwrap(), &Key::new("f").unwrap(), delta);
        let increments = [step("b", 1), step("a", 1), step("b", 1), step("a", -1)];
        let passes = passes(&increments);
        let steps: Vec<Vec<_>> =
            passes.iter().map(|sums| sums.iter().map(|sum| sum.steps.clone()).collect()).collect();
        assert_eq!(steps, [vec![vec![1], vec![0, 2]], vec![vec![3]]]);
    }

    /// A counter that overflows.
    struct Counter(Mutex<i64>);

    impl Add for Counter {
        const OF_ONE_SUM: &'static [ErrorKind] = &[ErrorKind::Overflow];

        async fn add(&self, sums: &[Sum<'_>]) -> Result<Vec<i64>> {
            let mut count = self.0.lock().unwrap();
            *count = count.checked_add(sums[0].total).ok_or_else(Error::overflow)?;
            Ok(vec![*count])
        }
    }

    #[tokio::test]
    async fn each_step_has_its_own_total_or_fails_alone() {
        for (before, deltas) in [
            (0, &[1, 0, 2, 3][..]),
            (-7, &[5, -5, -1, 2]),
            (i64::MAX - 3, &[2, 2, 0, 1, 1]),
            (i64::MIN + 1, &[-1, -1, 1, -2, 5]),
            (3, &[i64::MAX, i64::MIN, i64::MAX, 2, i64::MAX]),
        ] {
            let (increments, counter) = (steps(deltas), Counter(Mutex::new(before)));
            let mut found = Vec::new();
            for sums in passes(&increments) {
                found.extend(apply(&counter, &sums, &increments).await);
            }
            let found = totals(&increments, found).unwrap();
            let mut total = before;
            let expected = deltas.iter().map(|delta| {
                let new = total.checked_add(*delta)?;
                total = new;
                Some(new)
            });
            assert_eq!(found.totals, expected.collect::<Vec<_>>(), "{before} {deltas:?}");
        }
    }
}
