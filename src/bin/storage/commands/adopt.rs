//! `storage adopt`.

use std::sync::Arc;

use clap::Args;
use futures_util::StreamExt;
use gateway_storage::{Adoption, ErrorKind, Exportable, Layout, Remark, RemarkKind};
use serde_json::{Value, json};

use super::Run;
use crate::{
    backends::Operated,
    door::Door,
    failure::Failure,
    output::{Answer, described},
    place::{is_within, label},
    source::Source,
    stores,
    transfer::Transfer,
};

/// Take over what the Go program left: records go into a store, the rest is listed
#[derive(Args)]
#[command(after_help = "\
Layouts, and what they are read from. Nothing is ever written there; stop the Go program first.
  file      file:DIR             credentials/ID.json, config/config.json, usage/KEY.json
  git       file:DIR             a clone's work tree: credentials/ID.json, config/KEY.json
  folder    file:DIR             a folder of credential files, ID.json
  json      file:FILE            the document that it exported
  redis     redis://HOST         keys PREFIXcred:ID, PREFIXconfig, PREFIXusage:KEY; option: ?prefix=gcli2api:
  mongodb   mongodb://HOST/DB    collections credentials, configs, usage_stats
  postgres  postgres://HOST/DB   tables credentials, configs, usage_stats; option: ?schema=public

Everything that is there and is not adopted is listed with its reason: `not understood` is what can't be read (exit code 4), `left
out` what has no place in a store (cache values, records of plans). `changed` is adopted, but look at it.

In a DIR symbolic links are followed as long as they stay in it: a mounted Kubernetes secret is read as it is.

A Redis database needs no adoption if it stays where it is: open it with the same prefix.

Examples:
  storage adopt file:/var/lib/gcli2api/data file:./data --dry-run
  storage adopt mongodb://db1/gcli2api postgres://gw@db2/gateway --verify
  storage adopt file:./backup redis://localhost --layout folder
  storage adopt redis://old file:./data --output json | jq '.remarks[] | select(.kind == \"not_understood\")'")]
pub(crate) struct Adopt {
    /// What the Go program left
    #[arg(value_name = "GO_LAYOUT_URL")]
    pub(crate) source: String,
    /// The store to put it into; it is made if it is not there
    #[arg(value_name = "DST")]
    pub(crate) target: String,
    /// Which layout it is, where that can't be told: file, folder, git, json, mongodb, postgres or redis
    #[arg(long, value_name = "LAYOUT")]
    layout: Option<Layout>,
    #[command(flatten)]
    transfer: Transfer,
}

impl<B: Operated + Exportable> Run<B> for Adopt {
    async fn run(&self, door: &Door<'_, B>) -> Result<Answer, Failure> {
        door.config()?;
        let url = stores::resolve(&self.source)?;
        if is_within(&url, door.url()) {
            return Err(Failure::line("the target is in the source, where nothing may be written").hint(
                "name another place; Redis data that stay where they are need no adoption: open them",
            ));
        }
        let adoption = Adoption::open(&url, self.layout).await.map_err(|error| {
            let failure = Failure::opening(&url, &error).at("source");
            match error.kind() {
                ErrorKind::NotFound => failure.hint("`storage adopt --help` lists what is looked for"),
                _ => failure,
            }
        })?;
        let adoption = Arc::new(adoption);
        let result = self.adopt(&url, &adoption, door).await;
        if let Some(adoption) = Arc::into_inner(adoption) {
            // Nothing was written.
            let _ = adoption.close().await;
        }
        result
    }
}

impl Adopt {
    async fn adopt<B: Operated + Exportable>(
        &self,
        url: &str,
        adoption: &Arc<Adoption>,
        door: &Door<'_, B>,
    ) -> Result<Answer, Failure> {
        let first = adoption.records().boxed().next().await.transpose()?;
        if first.is_none() && adoption.remarks().is_empty() {
            return Err(Failure::nothing_found());
        }
        let layout = adoption.layout();
        let label = format!("{} as {layout}", label(url));
        let source = adoption.clone();
        let source = Source::new(Some(label), true, move || source.records().boxed());
        let answer = self.transfer.run(source, door).await?;
        Ok(told(answer, layout, &adoption.remarks()))
    }
}

/// The answer with what there is to say of the source.
fn told(answer: Answer, layout: Layout, remarks: &[Remark]) -> Answer {
    let (answer, mut failure) = match answer {
        Answer::But { answer, failure } => (*answer, Some(failure)),
        answer => (answer, None),
    };
    let Answer::Lines { lines: table, mut json } = answer else { return answer };
    let mut lines = vec![format!("found: the Go program's layout `{layout}`")];
    lines.extend(table);
    let mut not_understood = 0;
    for kind in [RemarkKind::NotUnderstood, RemarkKind::Changed, RemarkKind::LeftOut] {
        let these: Vec<&Remark> = remarks.iter().filter(|remark| remark.kind == kind).collect();
        if kind == RemarkKind::NotUnderstood {
            not_understood = these.len();
        }
        if !these.is_empty() {
            lines.push(String::new());
            lines.push(format!("{} ({}):", kind.as_str().replace('_', " "), these.len()));
            let line = |remark: &&Remark| format!("  {}", described(remark));
            lines.extend(these.iter().map(line));
        }
    }
    json["layout"] = json!(layout);
    json["remarks"] = json!(remarks);
    if not_understood > 0 {
        json["complete"] = Value::Bool(false);
        failure = failure.or_else(|| Some(Failure::left_behind(not_understood)));
    }
    let answer = Answer::Lines { lines, json };
    match failure {
        Some(failure) => Answer::But { answer: Box::new(answer), failure },
        None => answer,
    }
}
