//! `storage adopt`.

use std::sync::Arc;

use clap::Args;
use futures_util::StreamExt;
use gateway_storage::{
    ErrorKind, Exportable,
    adopt::{Adoption, Layout, Remark, RemarkKind},
};
use serde_json::{Value, json};

use super::{Answer, CliBackend, Failure, Run, Session};
use crate::{
    identity::{is_within, legacy_identity_of},
    stores,
    term::text::described,
    transfer::{copy::Transfer, source::Source},
};

/// Import the legacy data of gcli2api-go; list the entries that can't be imported
#[derive(Args)]
#[command(after_help = "\
Layouts and where their data is. The source is never changed. Stop gcli2api-go first.
  file      file:DIR             credentials/ID.json, config/config.json, usage/KEY.json
  git       file:DIR             a Git work tree: credentials/ID.json, config/KEY.json
  folder    file:DIR             a directory of credential files, ID.json
  json      file:FILE            an exported document
  redis     redis://HOST         keys PREFIXcred:ID, PREFIXconfig, PREFIXusage:KEY;
                                 option: ?prefix=gcli2api:
  mongodb   mongodb://HOST/DB    collections credentials, configs, usage_stats
  postgres  postgres://HOST/DB   tables credentials, configs, usage_stats;
                                 option: ?schema=public

Each entry that is not adopted unchanged is listed with a reason. `not understood`: it can't be read
(exit code 4). `left out`: it has no counterpart in a store (cache values, records of plans).
`changed`: it was adopted with a change that you should review.

Symbolic links within DIR are followed, so a mounted Kubernetes secret can be read.

A Redis database that stays in use needs no adoption: open it with the same prefix.

Examples:
  storage adopt file:/var/lib/gcli2api/data file:./data --dry-run
  storage adopt mongodb://db1/gcli2api postgres://gw@db2/gateway --verify
  storage adopt file:./backup redis://localhost --layout folder
  storage adopt redis://old file:./data --output json | jq '.remarks[].place'")]
pub(crate) struct Adopt {
    /// The legacy data
    #[arg(value_name = "GO_LAYOUT_URL")]
    pub(crate) source: String,
    /// The target store; created if it does not exist
    #[arg(value_name = "DST")]
    pub(crate) target: String,
    /// The layout of the legacy data, if it is ambiguous: see below
    #[arg(long, value_name = "LAYOUT")]
    layout: Option<Layout>,
    #[command(flatten)]
    transfer: Transfer,
}

impl<B: CliBackend + Exportable> Run<B> for Adopt {
    async fn run(&self, session: &Session<'_, B>) -> Result<Answer, Failure> {
        session.options()?;
        let url = stores::resolve(&self.source)?;
        if is_within(&url, session.url) {
            return Err(Failure::usage("the target is within the source, which must not be written")
                .hint("name another target; Redis data that stays in use needs no adoption: open it"));
        }
        let adoption = Adoption::open(&url, self.layout).await.map_err(|error| {
            let failure = Failure::opening(&url, &error).at("source");
            match error.kind() {
                ErrorKind::NotFound => failure.hint("`storage adopt --help` lists the layouts"),
                _ => failure,
            }
        })?;
        let adoption = Arc::new(adoption);
        let result = self.adopt(&url, &adoption, session).await;
        if let Some(adoption) = Arc::into_inner(adoption) {
            // Nothing was written, so an error loses nothing.
            let _ = adoption.close().await;
        }
        result
    }
}

impl Adopt {
    async fn adopt<B: CliBackend + Exportable>(
        &self,
        url: &str,
        adoption: &Arc<Adoption>,
        session: &Session<'_, B>,
    ) -> Result<Answer, Failure> {
        let first = adoption.records().boxed().next().await.transpose()?;
        if first.is_none() && adoption.remarks().is_empty() {
            return Err(Failure::nothing_found());
        }
        let layout = adoption.layout();
        let identity = format!("{} as {layout}", legacy_identity_of(url));
        let source = adoption.clone();
        let source = Source::new(Some(identity), true, move || source.records().boxed());
        let answer = self.transfer.run(source, session).await?;
        Ok(with_remarks(answer, layout, &adoption.remarks()))
    }
}

/// Adds the layout and the remarks to the answer.
fn with_remarks(mut answer: Answer, layout: Layout, remarks: &[Remark]) -> Answer {
    let Some((lines, json)) = answer.lines() else { return answer };
    lines.insert(0, format!("found: gcli2api-go layout `{layout}`"));
    for kind in [RemarkKind::NotUnderstood, RemarkKind::Changed, RemarkKind::LeftOut] {
        let these: Vec<&Remark> = remarks.iter().filter(|remark| remark.kind == kind).collect();
        if !these.is_empty() {
            lines.push(String::new());
            lines.push(format!("{} ({}):", kind.as_str().replace('_', " "), these.len()));
            lines.extend(these.into_iter().map(|remark| format!("  {}", described(remark))));
        }
    }
    json["layout"] = json!(layout);
    json["remarks"] = json!(remarks);
    let not_understood = remarks.iter().filter(|remark| remark.kind == RemarkKind::NotUnderstood).count();
    if not_understood > 0 {
        json["complete"] = Value::Bool(false);
    }
    match answer {
        Answer::WithFailure { .. } => answer,
        _ => answer.with_failure((not_understood > 0).then(|| Failure::not_adopted(not_understood))),
    }
}
