//! The names of Redis keys: the layout of the Go program, with plans, their audit and leases beside it.

use super::slot;
use crate::{Key, Result, codec::decode_key};

pub(super) struct Layout {
    prefix: String,
    /// The prefix of the keys of plans and of the audit, in the hash slot of the config values.
    beside_config: String,
}

/// What has a Redis key each.
#[derive(Clone, Copy)]
pub(super) enum Space {
    Credential,
    Usage,
    Cache,
    Lease,
}

impl Space {
    const fn word(self) -> &'static str {
        match self {
            Self::Credential => "cred:",
            Self::Usage => "usage:",
            Self::Cache => "cache:",
            Self::Lease => "lease:",
        }
    }
}

impl Layout {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), beside_config: beside(&[prefix, "config"].concat()) + ":" }
    }

    /// The Redis key of one record or lease.
    pub(super) fn name(&self, space: Space, key: &Key) -> String {
        [&self.prefix, space.word(), key.as_str()].concat()
    }

    /// The hash of all config values.
    pub(super) fn config(&self) -> String {
        [&self.prefix, "config"].concat()
    }

    /// The prefix of the keys of credentials.
    pub(super) fn credentials(&self) -> String {
        [&self.prefix, Space::Credential.word()].concat()
    }

    /// The record of a plan.
    pub(super) fn plan(&self, key: &Key) -> String {
        [&self.beside_config, "plan:", key.as_str()].concat()
    }

    /// The audit of plans.
    pub(super) fn audit(&self) -> String {
        [&self.beside_config, "audit"].concat()
    }

    /// The key that a health check writes to. It never exists.
    pub(super) fn health(&self) -> String {
        [&self.prefix, "health"].concat()
    }

    /// Names of such keys for a cluster, without end: every slot has some of them.
    pub(super) fn health_names(&self) -> impl Iterator<Item = String> {
        (0_u32..).map(|number| format!("{}health:{number}", self.prefix))
    }

    /// Whether the prefix has a tag, so that all keys are in one slot.
    pub(super) fn is_in_one_slot(&self) -> bool {
        slot::tag_of(self.prefix.as_bytes()).is_some()
    }

    /// The prefix of the keys of this crate's plans and of the audit.
    pub(super) fn beside_config(&self) -> &str {
        &self.beside_config
    }

    /// The prefix of the keys of the Go program's plans.
    pub(super) fn go_plans(&self) -> String {
        [&self.prefix, "plan:"].concat()
    }

    /// The MATCH pattern of SCAN for the keys of one kind that begin with `prefix`, or for all. Wildcards in
    /// the prefixes are escaped.
    pub(super) fn pattern(&self, space: Option<Space>, prefix: &str) -> String {
        let words = [self.prefix.as_str(), space.map_or("", Space::word), prefix];
        let mut pattern = String::with_capacity(self.prefix.len() + prefix.len() + 8);
        for character in words.into_iter().flat_map(str::chars) {
            if matches!(character, '*' | '?' | '[' | ']' | '^' | '-' | '\\') {
                pattern.push('\\');
            }
            pattern.push(character);
        }
        pattern.push('*');
        pattern
    }

    /// The kind and the key of a record or lease, from its Redis key.
    pub(super) fn record(&self, name: &[u8]) -> Option<(Space, Result<Key>)> {
        let rest = name.strip_prefix(self.prefix.as_bytes())?;
        let spaces = [Space::Credential, Space::Usage, Space::Cache, Space::Lease].into_iter();
        let mut keys = spaces.map(|space| (space, rest.strip_prefix(space.word().as_bytes())));
        keys.find_map(|(space, key)| Some((space, decode_key(key?))))
    }
}

/// A prefix that puts any name into the hash slot of this name.
fn beside(name: &str) -> String {
    let wanted = slot::of_key(name.as_bytes());
    match slot::tag_of(name.as_bytes()) {
        Some(_) => name.to_owned(),
        None if !name.contains('}') => format!("{{{name}}}"),
        // The name can't be a tag, but a number can, and every slot has one.
        None => (0_u32..)
            .map(|number| format!("{{{number}}}"))
            .find(|tag| slot::of_key(tag.as_bytes()) == wanted)
            .map_or_else(String::new, |tag| tag + name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn names() {
        let layout = Layout::new("gcli2api:");
        let key = Key::new("a:b*").unwrap();
        assert_eq!(layout.name(Space::Credential, &key), "gcli2api:cred:a:b*");
        assert_eq!(layout.name(Space::Usage, &key), "gcli2api:usage:a:b*");
        assert_eq!(layout.name(Space::Cache, &key), "gcli2api:cache:a:b*");
        assert_eq!(layout.name(Space::Lease, &key), "gcli2api:lease:a:b*");
        assert_eq!(layout.config(), "gcli2api:config");
        let decoded = |name| layout.record(name).map(|(_, key)| key);
        assert_eq!(decoded(b"gcli2api:usage:a:b*").unwrap().unwrap(), key);
        assert!(decoded(b"gcli2api:config").is_none() && decoded(b"usage:a").is_none());
        for broken in [&b"gcli2api:cred:"[..], b"gcli2api:cred:a\n", b"gcli2api:cred:\xff"] {
            assert_eq!(decoded(broken).unwrap().unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }

    #[test]
    fn plans_are_in_the_slot_of_the_config_values() {
        let names = |prefix| {
            let layout = Layout::new(prefix);
            [layout.plan(&Key::new("a}{b}").unwrap()), layout.audit(), layout.config()]
        };
        let ours = names("gcli2api:");
        assert_eq!(ours[..2], ["{gcli2api:config}:plan:a}{b}", "{gcli2api:config}:audit"]);
        assert_eq!(names("{app}:")[1], "{app}:config:audit");
        for prefix in ["gcli2api:", "{app}:", "x{app}:", "{", "}", "{}", "{}{app}", "a}b:", "}{", "", "{{a}}"]
        {
            let names = names(prefix);
            let slots = names.clone().map(|name| slot::of_key(name.as_bytes()));
            assert!(slots[0] == slots[2] && slots[1] == slots[2], "{names:?} are in {slots:?}");
        }
    }

    #[test]
    fn nothing_in_a_prefix_is_a_wildcard() {
        let pattern = |prefix| Layout::new(prefix).pattern(Some(Space::Credential), "");
        assert_eq!(pattern("app[1]:"), r"app\[1\]:cred:*");
        assert_eq!(pattern("?y^-\\*"), r"\?y\^\-\\\*cred:*");
        let of_prefix = Layout::new("a*:").pattern(Some(Space::Usage), "b?[c]\\");
        assert_eq!(of_prefix, r"a\*:usage:b\?\[c\]\\*");
    }
}
