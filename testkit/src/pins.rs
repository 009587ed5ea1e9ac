//! Tables of pinned numbers. A measured number outside the margin of its pinned one is a failure.

use std::{collections::BTreeMap, env, fs, path::Path, process::Command};

/// The compiler of the pinned numbers. Others allocate, lay out and inline differently.
const RUSTC: &str = "1.95";

/// How far a measured number may be from the pinned one.
#[derive(Clone, Copy)]
pub struct Margin {
    /// Percent above the pinned number, or this many units if that is more.
    pub above: (u64, u64),
    /// Percent below the pinned number, likewise. Beyond it the pinned number has to be lowered.
    pub below: (u64, u64),
}

impl Margin {
    /// The number is always the same.
    pub const NONE: Self = Self { above: (0, 0), below: (0, 0) };

    /// The same percentage above and below.
    pub const fn percent(percent: u64) -> Self {
        Self { above: (percent, 0), below: (percent, 0) }
    }

    fn is_none(self) -> bool {
        (self.above, self.below) == (Self::NONE.above, Self::NONE.below)
    }

    fn verdict(self, pinned: u64, measured: u64) -> Option<&'static str> {
        let within = |(percent, units): (u64, u64)| units.max(pinned * percent / 100);
        if measured > pinned + within(self.above) {
            Some("DEARER")
        } else if measured + within(self.below) < pinned {
            Some("cheaper, so the pin must be lowered")
        } else {
            None
        }
    }
}

/// A column of a table.
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// The margin of a row.
    pub margin: fn(&str) -> Margin,
}

/// The measured numbers of each row, one for each column.
pub type Rows = BTreeMap<String, Vec<u64>>;

/// A table in a file.
pub struct Table<'t> {
    /// Its file.
    pub path: &'t Path,
    /// The lines above it.
    pub title: &'t str,
    /// Its columns, after the row's name.
    pub columns: &'t [Column],
    /// The command that writes the measured numbers into the file.
    pub rewrite: &'t str,
}

impl Table<'_> {
    /// Compares the measured numbers with the pinned ones. With `COSTS=write` in the environment it pins
    /// them.
    ///
    /// # Errors
    ///
    /// A text of each number outside its margin and each row that only one of the two has.
    pub fn check(&self, measured: &Rows) -> Result<(), String> {
        if env::var_os("COSTS").is_some_and(|mode| mode == "write") {
            fs::write(self.path, self.text(measured)).expect("the table can be written");
            return Ok(());
        }
        let pinned = self.read();
        let is_other_compiler = !has_pinned_compiler();
        if is_other_compiler {
            eprintln!("the numbers were pinned with rustc {RUSTC}: with this one they may differ by half");
        }
        let mut faults = Vec::new();
        for (row, numbers) in measured {
            let Some(pins) = pinned.get(row) else {
                faults.push(format!("{row}: measured {numbers:?}, and not pinned"));
                continue;
            };
            for ((column, &pin), &number) in self.columns.iter().zip(pins).zip(numbers) {
                let mut margin = (column.margin)(row);
                if is_other_compiler && !margin.is_none() {
                    margin = Margin::percent(50);
                }
                if let Some(verdict) = margin.verdict(pin, number) {
                    faults
                        .push(format!("{row}: {}: pinned {pin}, measured {number}: {verdict}", column.name));
                }
            }
        }
        let stale = pinned.keys().filter(|row| !measured.contains_key(*row));
        faults.extend(stale.map(|row| format!("{row}: pinned, and not measured")));
        if faults.is_empty() {
            return Ok(());
        }
        let (file, rewrite) = (self.path.display(), self.rewrite);
        Err(format!("{}\nIf this is meant, edit {file}, or: {rewrite}", faults.join("\n")))
    }

    /// The pinned numbers. A file that is missing has none.
    pub fn read(&self) -> Rows {
        let text = fs::read_to_string(self.path).unwrap_or_default();
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        lines
            .map(|line| {
                let (row, numbers) = line.split_once(' ').expect("a row has numbers");
                let numbers = numbers.split_whitespace().map(|number| number.parse().expect("a number"));
                let numbers: Vec<u64> = numbers.collect();
                assert_eq!(numbers.len(), self.columns.len(), "the columns of {row}");
                (row.to_owned(), numbers)
            })
            .collect()
    }

    fn text(&self, rows: &Rows) -> String {
        let mut text: String = self.title.lines().map(|line| format!("# {line}\n")).collect();
        let width = rows.keys().map(String::len).max().unwrap_or_default().max("# operation".len());
        text += &format!("{:width$}", "# operation");
        let widths: Vec<usize> = self.columns.iter().map(|column| column.name.len().max(9) + 2).collect();
        for (column, width) in self.columns.iter().zip(&widths) {
            text += &format!("{:>width$}", column.name);
        }
        for (row, numbers) in rows {
            text += &format!("\n{row:width$}");
            for (number, width) in numbers.iter().zip(&widths) {
                text += &format!("{number:>width$}");
            }
        }
        text + "\n"
    }
}

/// Whether the compiler that is run by default is that of the pinned numbers.
fn has_pinned_compiler() -> bool {
    let version = Command::new("rustc").arg("--version").output().expect("rustc runs");
    String::from_utf8_lossy(&version.stdout).starts_with(&format!("rustc {RUSTC}."))
}
