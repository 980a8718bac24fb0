use std::fmt::Write as _;

use maud::{Markup, html};

const WIDTH: f64 = 240.0;
const HEIGHT: f64 = 48.0;

/// A line of the last values, oldest first; `None` where nothing was measured. `title` says the
/// whole in words, for those who hear the page. `most` is the value at the top; without one it is
/// the highest of the values.
pub fn sparkline(title: &str, values: &[Option<f64>], most: Option<f64>) -> Markup {
    let (line, area) = paths(values, most);
    html! {
        svg.spark viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" role="img" {
            title { (title) }
            line.spark-floor x1="0" x2=(WIDTH) y1=(HEIGHT - 1.0) y2=(HEIGHT - 1.0) {}
            @if !area.is_empty() { path.spark-area d=(area) {} }
            @if !line.is_empty() { path.spark-line d=(line) {} }
        }
    }
}

fn paths(values: &[Option<f64>], most: Option<f64>) -> (String, String) {
    let finite = |v: &Option<f64>| v.filter(|v| v.is_finite()).map(|v| v.max(0.0));
    let highest = values.iter().filter_map(finite).fold(0.0, f64::max);
    let top = most.filter(|m| m.is_finite()).unwrap_or(0.0).max(highest);
    let step = WIDTH / (values.len().max(2) - 1) as f64;
    let y = |v: f64| {
        let share = if top > 0.0 { v / top } else { 0.0 };
        HEIGHT - 1.5 - share * (HEIGHT - 5.0)
    };
    let (mut line, mut area) = (String::new(), String::new());
    let mut open: Option<f64> = None;
    for (i, value) in values.iter().enumerate() {
        let x = i as f64 * step;
        match (finite(value), open) {
            (Some(v), None) => {
                let _ = write!(line, "M{x:.1} {:.1}", y(v));
                let _ = write!(area, "M{x:.1} {HEIGHT}L{x:.1} {:.1}", y(v));
                open = Some(x);
            }
            (Some(v), Some(_)) => {
                let _ = write!(line, "L{x:.1} {:.1}", y(v));
                let _ = write!(area, "L{x:.1} {:.1}", y(v));
                open = Some(x);
            }
            (None, Some(last)) => {
                let _ = write!(area, "L{last:.1} {HEIGHT}Z");
                open = None;
            }
            (None, None) => {}
        }
    }
    if let Some(last) = open {
        let _ = write!(area, "L{last:.1} {HEIGHT}Z");
    }
    (line, area)
}

/// One column of [`bars`].
#[derive(Debug, Clone)]
pub struct Bar {
    /// What is said on hovering: `23 Nov: 1 200 tokens`.
    pub title: String,
    /// How high.
    pub value: f64,
}

/// Columns side by side, oldest first.
pub fn bars(title: &str, bars: &[Bar]) -> Markup {
    let height = |v: f64| if v.is_finite() { v.max(0.0) } else { 0.0 };
    let top = bars.iter().map(|b| height(b.value)).fold(0.0, f64::max);
    let slot = WIDTH / bars.len().max(1) as f64;
    html! {
        svg.bars viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" role="img" {
            title { (title) }
            line.spark-floor x1="0" x2=(WIDTH) y1=(HEIGHT - 0.5) y2=(HEIGHT - 0.5) {}
            @for (i, bar) in bars.iter().enumerate() {
                @let share = if top > 0.0 { height(bar.value) / top } else { 0.0 };
                @let tall = if share > 0.0 { (share * (HEIGHT - 4.0)).max(1.5) } else { 0.0 };
                rect.bar x=(format!("{:.1}", i as f64 * slot + slot * 0.15))
                    y=(format!("{:.1}", HEIGHT - 1.0 - tall))
                    width=(format!("{:.1}", slot * 0.7)) height=(format!("{tall:.1}")) rx="0.8" {
                    title { (bar.title) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_value_is_at_the_top_and_a_gap_breaks_the_line() {
        let (line, area) = paths(&[Some(0.0), Some(10.0), None, Some(5.0)], None);
        assert_eq!(line, "M0.0 46.5L80.0 3.5M240.0 25.0");
        assert_eq!(area.matches('Z').count(), 2);
    }

    #[test]
    fn values_that_are_no_numbers_draw_nothing() {
        let (line, _) = paths(&[Some(f64::NAN), Some(f64::INFINITY), Some(-1.0)], Some(f64::NAN));
        assert_eq!(line, "M240.0 46.5");
        let text = bars("t", &[Bar { title: "<b>".into(), value: f64::NAN }]).into_string();
        assert!(!text.contains("NaN") && text.contains("&lt;b&gt;"));
    }

    #[test]
    fn no_values_are_an_empty_chart() {
        assert!(
            sparkline("nothing", &[], Some(1.0)).into_string().contains("<title>nothing</title>")
        );
        assert!(bars("nothing", &[]).into_string().contains("<title>nothing</title>"));
    }
}
