//! The options of the lists.

use clap::Args;
use gateway_storage::{Key, list::ListOptions};

#[derive(Args)]
pub(crate) struct Page {
    /// List only keys that begin with this text
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    prefix: String,
    /// List only keys that sort after this key: the last one of the page before
    #[arg(long, value_name = "KEY")]
    after: Option<Key>,
    /// List at most this number of records
    #[arg(long, value_name = "NUMBER")]
    limit: Option<usize>,
}

impl Page {
    pub(crate) fn options(&self) -> ListOptions {
        let mut options = ListOptions::default().with_prefix(self.prefix.as_str());
        (options.after, options.limit) = (self.after.clone(), self.limit);
        options
    }

    /// Whether it is the whole list.
    pub(crate) fn is_all(&self) -> bool {
        self.options() == ListOptions::default()
    }
}
