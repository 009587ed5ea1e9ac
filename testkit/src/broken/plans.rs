//! `ConfigBatch` for `Broken`, with its faults.

use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use gateway_storage::{
    Backend, ConfigBatch, ConfigStore, Error, ErrorKind, Key, Result,
    plan::{
        Applied, ApplyOptions, AuditEntry, AuditFilter, AuditStatus, MAX_PLAN_TTL, Mutation, Plan, Rollback,
        RollbackOptions,
    },
};

use super::{Broken, Fault::*};

impl Broken {
    async fn mutate(&self, mutation: &Mutation) -> Result<()> {
        match &mutation.value {
            Some(value) => self.memory.set_config(&mutation.key, value).await,
            None => self.memory.delete_config(&mutation.key).await.or(Ok(())),
        }
    }

    /// The plan, changed by the fault.
    fn changed_by_fault(&self, plan: &Plan) -> Result<Plan> {
        let mut mutations = plan.mutations().to_vec();
        match self.fault {
            PlanDeletesLast => mutations.sort_by_key(|mutation| mutation.value.is_none()),
            PlanLosesItsSign => {
                for mutation in &mut mutations {
                    let value =
                        mutation.value.as_ref().map(|value| self.value(value).try_into()).transpose()?;
                    mutation.value = value;
                }
            }
            _ => {}
        }
        Plan::new(mutations)
    }
}

fn is_other_payload(error: &Error) -> bool {
    error.kind() == ErrorKind::Conflict && error.key().is_none()
}

impl ConfigBatch for Broken {
    async fn apply_plan(&self, key: &Key, plan: &Plan, options: &ApplyOptions) -> Result<Applied> {
        let mut options = options.clone();
        if self.has(PlanNeverExpires) && !options.ttl.is_zero() && options.ttl < MAX_PLAN_TTL {
            options.ttl = MAX_PLAN_TTL;
        }
        let plan = &self.changed_by_fault(plan)?;
        if self.has(PlanIsRacy) {
            let entries = self.memory.audit_plans(AuditFilter::default().with_key(key)).count().await;
            tokio::task::yield_now().await;
            return match self.memory.apply_plan(key, plan, &options).await? {
                Applied::Replayed if entries == 0 => Ok(Applied::Applied),
                applied => Ok(applied),
            };
        }
        match self.memory.apply_plan(key, plan, &options).await {
            Err(error) if is_other_payload(&error) && self.has(PlanReplaysAnother) => Ok(Applied::Replayed),
            Err(error)
                if self.has(PlanExpectsNothing) && error.key().is_some()
                    || self.has(PlanComesBack) && error.to_string().contains("rolled back") =>
            {
                for mutation in plan.mutations() {
                    self.mutate(mutation).await?;
                }
                Ok(Applied::Applied)
            }
            Err(error) if error.key().is_some() && self.has(PlanRefusedInPart) => {
                self.mutate(&plan.mutations()[0]).await?;
                Err(error)
            }
            Ok(Applied::Replayed) if self.has(PlanReplaysItself) => {
                for mutation in plan.mutations() {
                    self.mutate(mutation).await?;
                }
                Ok(Applied::Replayed)
            }
            other => other,
        }
    }

    async fn rollback_plan(&self, key: &Key, options: &RollbackOptions) -> Result<Rollback> {
        let options =
            if self.has(RollbackForces) { options.clone().with_force(true) } else { options.clone() };
        match self.memory.rollback_plan(key, &options).await? {
            Rollback::AlreadyRolledBack if self.has(RollbackForgets) => Ok(Rollback::RolledBack),
            Rollback::Refused { changed } if self.has(RollbackNamesOne) => {
                Ok(Rollback::Refused { changed: changed.into_iter().take(1).collect() })
            }
            other => Ok(other),
        }
    }

    fn audit_plans(&self, filter: AuditFilter) -> impl Stream<Item = Result<AuditEntry>> + Send {
        let mut filter = filter;
        if self.has(AuditIgnoresStages) {
            filter.stage = None;
        }
        let broken = self.clone();
        stream::once(async move {
            let mut entries: Vec<AuditEntry> = broken.memory.audit_plans(filter).try_collect().await?;
            entries.iter_mut().for_each(|entry| entry.backend = broken.label());
            match broken.fault {
                AuditIsOldestFirst => entries.reverse(),
                AuditOmitsFailures => entries.retain(|entry| entry.status != AuditStatus::Failed),
                _ => {}
            }
            Ok::<_, Error>(stream::iter(entries).map(Ok))
        })
        .try_flatten()
    }
}
