//! A plan as plain text for people: no line over 100 characters, nothing that needs colour.

use std::fmt::{Display, Write as _};

use polder_recipes::Label;

use crate::estimate::Estimate;
use crate::memory::Fit;
use crate::quantity::{Quantity, Span};
use crate::speed::{DecodeRow, TOGETHER};
use crate::text::{tokens, whole, wrap};

const WIDTH: usize = 98;

impl Estimate {
    /// For a terminal or a plain page.
    pub fn render_table(&self) -> String {
        let mut sheet = Sheet::default();
        sheet.line(&format!(
            "{} on {}, for {} member{}",
            self.model_title,
            self.box_title,
            whole(f64::from(self.members)),
            if self.members == 1 { "" } else { "s" }
        ));
        sheet.blank();
        let answer = match self.verdict.fit {
            Fit::Fits => "IT FITS.",
            Fit::FitsTightly => "IT FITS, BARELY.",
            Fit::FitsWithSlowExperts => "IT FITS, BUT SLOWLY.",
            Fit::DoesNotFit => "IT DOES NOT FIT.",
        };
        sheet.wrapped("", &format!("{answer} {}", self.verdict.why));
        for line in &self.in_short {
            sheet.wrapped("- ", line);
        }
        self.memory_table(&mut sheet);
        if self.verdict.fit != Fit::DoesNotFit {
            self.session_table(&mut sheet);
            self.decode_table(&mut sheet);
            self.prefill_table(&mut sheet);
        }
        self.cost_table(&mut sheet);
        if !self.notes.is_empty() {
            sheet.heading("WHERE THE PUBLISHED GUIDE DIFFERS");
            for note in &self.notes {
                sheet.wrapped("* ", &format!("It says: {}", note.guide));
                sheet.wrapped("  ", &format!("Here: {} [{}]", note.here, note.formula));
            }
        }
        sheet.heading("TAKEN FOR GRANTED");
        for line in self.assumed.iter().chain(&self.remarks) {
            sheet.wrapped("- ", line);
        }
        sheet.wrapped(
            "- ",
            "computed: by the formula shown. vendor: the maker says so. measured: someone measured it. \
             estimate: a guess to plan with.",
        );
        sheet.text
    }

    fn memory_table(&self, sheet: &mut Sheet) {
        let memory = &self.memory;
        sheet.heading("MEMORY");
        sheet.quantity(if memory.slow.is_some() { "Fast memory" } else { "Memory" }, &memory.fast);
        sheet.quantity("of which we use", &memory.usable);
        sheet.quantity("The model's weights", &memory.weights);
        if let Some(moved) = &memory.weights_in_slow {
            sheet.quantity("of which in slow memory", moved);
        }
        sheet.quantity("Working space", &memory.workspace);
        sheet.quantity("Left for conversations", &memory.conversations);
        if let Some(slow) = &memory.slow {
            sheet.quantity("Slow memory", slow);
        }
        if let Some(waiting) = &memory.waiting {
            sheet.quantity("of which for those waiting", waiting);
        }
        sheet.quantity("A token takes (16 bits)", &self.kv.bits16);
        sheet.quantity("A token takes (8 bits)", &self.kv.bits8);
        if self.kv.per_conversation.value > 0.0 {
            sheet.quantity("and a conversation besides", &self.kv.per_conversation);
        }
    }

    fn session_table(&self, sheet: &mut Sheet) {
        sheet.heading("HOW MANY CONVERSATIONS STAY IN MEMORY");
        // Without a second memory there is nowhere to wait.
        let columns = if self.memory.slow.is_some() { 5 } else { 3 };
        let titles = ["tokens in each", "takes", "stay ready", "more can wait", "back in"];
        sheet.columns(&titles[..columns]);
        for row in &self.sessions {
            let cells = [
                format!("{}{}", tokens(row.tokens), mark(row.beyond_context)),
                row.each.to_string(),
                none(&row.ready),
                row.waiting.as_ref().map_or_else(String::new, none),
                row.bring_back.as_ref().map_or_else(String::new, ToString::to_string),
            ];
            sheet.columns(&cells[..columns]);
        }
        if let Some(row) = self.sessions.get(1) {
            let mut how =
                format!("For 32K: takes {}; ready {}", row.each.formula, row.ready.formula);
            if let (Some(waiting), Some(back)) = (&row.waiting, &row.bring_back) {
                how += &format!("; wait {}; back in {}", waiting.formula, back.formula);
            }
            sheet.how(&[row.ready.label], &how);
        }
        self.beyond(sheet);
    }

    fn decode_table(&self, sheet: &mut Sheet) {
        sheet.heading("HOW FAST AN ANSWER IS WRITTEN");
        sheet.columns(&["answered at once", "experts a layer", "weights read", "at least", ""]);
        for row in &self.steps {
            sheet.columns(&[
                &people(row.together),
                &row.distinct_experts.as_ref().map_or("-".into(), ToString::to_string),
                &row.weights_read.to_string(),
                &row.time.to_string(),
                "",
            ]);
        }
        if let Some(row) = self.steps.get(1) {
            let experts = row.distinct_experts.as_ref();
            let experts = experts.map_or(String::new(), |e| format!("experts {}; ", e.formula));
            let how = format!(
                "For 8: {experts}read {}; at least {}",
                row.weights_read.formula, row.time.formula
            );
            sheet.how(&[row.weights_read.label], &how);
        }
        sheet.blank();
        sheet.line("  Tokens per second for each person: at most, and (likely).");
        let [one, eight, many] = TOGETHER.map(people);
        sheet.wide(&["tokens so far", &one, &eight, &many]);
        for rows in self.decode.chunks(TOGETHER.len()) {
            let Some(first) = rows.first() else { continue };
            let length = if first.context == 0 { "none".into() } else { tokens(first.context) };
            let mut cells = vec![format!("{length}{}", mark(first.beyond_context))];
            cells.extend(rows.iter().map(cell));
            sheet.wide(&cells);
        }
        if let Some(row) = self.decode.iter().find(|r| r.together == 8 && r.context == 32_768) {
            let how = format!(
                "For 8 at 32K: read {}; {} = {}; at most {}; likely {}",
                row.read.formula,
                row.time.formula,
                row.time,
                row.ceiling.formula,
                row.likely.formula
            );
            sheet.how(&[row.ceiling.label, row.likely.label], &how);
        }
        if self.decode.iter().any(|row| !row.all_ready) {
            sheet.wrapped(
                "  ",
                "* So many of that length do not stay in fast memory together; they take turns.",
            );
        }
        self.beyond(sheet);
    }

    fn prefill_table(&self, sheet: &mut Sheet) {
        sheet.heading("HOW FAST A NEW PROMPT IS READ");
        sheet.columns(&["tokens in it", "work a token", "tokens/second", "answer begins", ""]);
        for row in &self.prefill {
            sheet.columns(&[
                &format!("{}{}", tokens(row.tokens), mark(row.beyond_context)),
                &row.work.to_string(),
                &row.speed.to_string(),
                &format!("after {}", row.wait),
                "",
            ]);
        }
        if let Some(row) = self.prefill.get(1) {
            let how = format!("For 32K: work {}; speed {}", row.work.formula, row.speed.formula);
            sheet.how(&[row.work.label, row.speed.label], &how);
        }
        sheet.wrapped(
            "  ",
            "Only what is new has to be read: an agent's next call repeats most of its last one.",
        );
        self.beyond(sheet);
    }

    fn cost_table(&self, sheet: &mut Sheet) {
        let cost = &self.cost;
        sheet.heading("WHAT IT COSTS (AUSTRALIAN DOLLARS)");
        match &cost.purchase {
            Some(purchase) => sheet.span("The machine", purchase),
            None => sheet.line("  The machine                 not known"),
        }
        if let Some(installation) = &cost.installation {
            sheet.span("Setting it up", installation);
        }
        if cost.purchase.is_some() {
            sheet.span("Trying models out, once", &cost.audition);
            sheet.span("Tuning a model, once", &cost.tuning);
        }
        if let Some(once) = &cost.one_time {
            sheet.span("All of that, once", once);
        }
        if let Some(share) = &cost.amortisation {
            sheet.span("Its share, each month", share);
        }
        if let Some(electricity) = &cost.electricity {
            sheet.quantity("Electricity, each month", electricity);
        }
        if cost.network.high > 0.0 {
            sheet.span("Internet, each month", &cost.network);
        }
        if let Some(monthly) = &cost.monthly {
            sheet.span("Together, each month", monthly);
        }
        if let Some(each) = &cost.per_member {
            sheet.span("For each member", each);
        }
        if let Some(support) = &cost.support_per_member {
            sheet.span("and for a support contract", support);
        }
    }

    fn beyond(&self, sheet: &mut Sheet) {
        if let Some(context) = self.context
            && self.sessions.iter().any(|row| row.beyond_context)
        {
            sheet.line(&format!(
                "  + Longer than this model was made for ({} tokens).",
                whole(f64::from(context))
            ));
        }
    }
}

fn people(count: u32) -> String {
    if count == 1 { "one person".into() } else { format!("{count} people") }
}

fn mark(beyond: bool) -> &'static str {
    if beyond { " +" } else { "" }
}

fn none(quantity: &Quantity) -> String {
    if quantity.value < 1.0 { "none".into() } else { quantity.to_string() }
}

fn cell(row: &DecodeRow) -> String {
    format!("{} ({}){}", row.ceiling, row.likely, if row.all_ready { "" } else { " *" })
}

/// Lines of text, none too long.
#[derive(Default)]
struct Sheet {
    text: String,
}

impl Sheet {
    fn line(&mut self, line: &str) {
        for part in if line.chars().count() > WIDTH { wrap(line, WIDTH) } else { vec![line.into()] }
        {
            self.text.push_str(part.trim_end());
            self.text.push('\n');
        }
    }

    fn blank(&mut self) {
        self.text.push('\n');
    }

    fn heading(&mut self, title: &str) {
        self.blank();
        self.line(title);
    }

    /// A paragraph whose first line begins with `bullet` and whose others line up with it.
    fn wrapped(&mut self, bullet: &str, text: &str) {
        let indent = " ".repeat(bullet.len());
        for (at, line) in wrap(text, WIDTH - bullet.len()).into_iter().enumerate() {
            self.line(&format!("{}{line}", if at == 0 { bullet } else { &indent }));
        }
    }

    /// Name, amount, how it is known, formula.
    fn quantity(&mut self, name: &str, quantity: &Quantity) {
        self.row(name, quantity, quantity.label, &quantity.formula);
    }

    fn span(&mut self, name: &str, span: &Span) {
        self.row(name, span, span.label, &span.formula);
    }

    fn row(&mut self, name: &str, amount: &dyn Display, label: Label, formula: &str) {
        let mut head = String::new();
        let _ = write!(head, "  {name:<26}{:>20}  {:<9} ", amount.to_string(), label.as_str());
        let room = WIDTH - head.chars().count();
        if formula.chars().count() <= room {
            return self.line(&format!("{head}{formula}"));
        }
        // A long formula reads better below, in the full width.
        self.line(&head);
        for line in wrap(formula, WIDTH - 6) {
            self.line(&format!("      {line}"));
        }
    }

    fn columns<S: AsRef<str>>(&mut self, cells: &[S]) {
        self.grid(cells, 16);
    }

    fn wide<S: AsRef<str>>(&mut self, cells: &[S]) {
        self.grid(cells, 24);
    }

    fn grid<S: AsRef<str>>(&mut self, cells: &[S], width: usize) {
        let mut line = String::from("  ");
        for (at, cell) in cells.iter().enumerate() {
            let cell = cell.as_ref();
            let _ =
                if at == 0 { write!(line, "{cell:<18}") } else { write!(line, "{cell:>width$}") };
        }
        self.line(&line);
    }

    /// How a table above was worked out, on one of its rows.
    fn how(&mut self, labels: &[Label], formula: &str) {
        let mut names: Vec<&str> = labels.iter().map(|label| label.as_str()).collect();
        names.dedup();
        self.wrapped("  ", &format!("[{}] {formula}.", names.join(", ")));
    }
}
