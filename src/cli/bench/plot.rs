//! A page with pictures of a run: throughput over time and the latency distribution, as inline SVG.
//!
//! Self-contained: no script, no font, nothing loaded from elsewhere; readable in light and in dark.

use super::report::{Outcome, count, duration};
use super::tally::SLOT;
use hdrhistogram::Histogram;
use std::fmt::Write;

/// Size of one picture, with room for the labels around the plot itself.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 90.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 44.0;

/// Points of a line at most; more are averaged.
const POINTS_MAX: usize = 400;

/// Quantiles are drawn up to this many nines.
const NINES_MAX: f64 = 5.0;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#667;--line:#d8dce2;--page:#fff;--c0:#0b67c2;--c1:#c2410b;--c2:#12805c;--c3:#7a3fb5}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ee;--soft:#9aa3b0;--line:#343a44;--page:#14171c;--c0:#5aa9f5;--c1:#f58a5a;\
--c2:#4fc99d;--c3:#b78cf0}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:900px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:2rem 0 .2rem}p{color:var(--soft);margin:.2rem 0}svg{width:100%;height:auto}\
text{font:12px system-ui,sans-serif;fill:var(--soft)}.grid{stroke:var(--line);stroke-width:1}\
.s{fill:none;stroke-width:2;stroke-linejoin:round}.s0{stroke:var(--c0)}.s1{stroke:var(--c1)}.s2{stroke:var(--c2)}.s3{stroke:var(--c3)}\
.warm{fill:var(--line);opacity:.45}pre{overflow-x:auto;font-size:12px}";

/// The page. `table` is the run's table as text.
pub(super) fn page(title: &str, table: &str, outcomes: &[Outcome]) -> String {
    let mut page = String::new();
    let title = escape(title);
    push(
        &mut page,
        format_args!("<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\n"),
    );
    push(&mut page, format_args!("<style>{STYLE}</style>\n<h1>{title}</h1>\n<pre>{}</pre>\n", escape(table)));
    for outcome in outcomes {
        let name = escape(outcome.name);
        push(&mut page, format_args!("<h2>{name}: throughput over time</h2>\n"));
        push(
            &mut page,
            format_args!("<p>Requests answered a second, in steps of 100 ms; shaded: not measured.</p>\n"),
        );
        page.push_str(&throughput(outcome));
        push(&mut page, format_args!("<h2>{name}: latency</h2>\n"));
        let from = if outcome.rate.is_some() { "was due" } else { "was sent" };
        push(
            &mut page,
            format_args!(
                "<p>Which share of requests was answered within which time after it {from}; both axes logarithmic.</p>\n"
            ),
        );
        page.push_str(&latency(outcome));
    }
    page.push_str("</html>\n");
    page
}

fn push(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("a string takes all that is written");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Places in a picture: from 0 to 1 on both axes, up is more.
fn x(at: f64) -> f64 {
    LEFT + at * (WIDTH - LEFT - RIGHT)
}

fn y(at: f64) -> f64 {
    HEIGHT - BOTTOM - at * (HEIGHT - TOP - BOTTOM)
}

fn picture(label: &str, body: &str) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">{body}</svg>\n")
}

fn horizontal(body: &mut String, at: f64, label: &str) {
    let (left, right, at) = (x(0.0), x(1.0), y(at));
    push(
        body,
        format_args!("<line class=\"grid\" x1=\"{left}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>"),
    );
    let (left, below) = (left - 8.0, at + 4.0);
    push(body, format_args!("<text x=\"{left}\" y=\"{below:.1}\" text-anchor=\"end\">{label}</text>"));
}

fn vertical(body: &mut String, at: f64, label: &str) {
    let (at, low, high) = (x(at), y(0.0), y(1.0));
    push(
        body,
        format_args!("<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{low}\" y2=\"{high}\"/>"),
    );
    let below = low + 18.0;
    push(body, format_args!("<text x=\"{at:.1}\" y=\"{below}\" text-anchor=\"middle\">{label}</text>"));
}

fn line(body: &mut String, series: usize, points: impl Iterator<Item = (f64, f64)>) {
    let points: Vec<String> = points.map(|(across, up)| format!("{:.1},{:.1}", x(across), y(up))).collect();
    push(body, format_args!("<polyline class=\"s s{series}\" points=\"{}\"/>", points.join(" ")));
}

/// The next of 1, 2, 5, 10, 20, ... that is not below.
fn round_up(value: f64) -> f64 {
    let unit = 10f64.powf(value.max(1e-9).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    steps.into_iter().map(|step| step * unit).find(|step| *step >= value * 0.999_999).unwrap_or(value)
}

fn throughput(outcome: &Outcome) -> String {
    let slot_s = SLOT.as_secs_f64();
    let slots = &outcome.tally.slots;
    // The last one is rarely whole.
    let slots = &slots[..slots.len().saturating_sub(1).max(1).min(slots.len())];
    let each = slots.len().div_ceil(POINTS_MAX).max(1);
    let rates: Vec<f64> = slots
        .chunks(each)
        .map(|part| part.iter().map(|slot| slot.replies).sum::<u64>() as f64 / (part.len() as f64 * slot_s))
        .collect();
    let top = round_up(rates.iter().copied().fold(1.0, f64::max));
    let seconds = slots.len().max(1) as f64 * slot_s;
    let mut body = String::new();
    let (from_s, to_s) = outcome.tally.window_s();
    for (begin, end) in [(0.0, from_s), (to_s, seconds)] {
        let (begin, end) = ((begin / seconds).min(1.0), (end / seconds).min(1.0));
        if end > begin {
            let (left, width, high, height) = (x(begin), x(end) - x(begin), y(1.0), y(0.0) - y(1.0));
            push(
                &mut body,
                format_args!(
                    "<rect class=\"warm\" x=\"{left:.1}\" y=\"{high}\" width=\"{width:.1}\" height=\"{height}\"/>"
                ),
            );
        }
    }
    (0..=4)
        .map(|quarter| f64::from(quarter) / 4.0)
        .for_each(|at| horizontal(&mut body, at, &count(top * at)));
    let step_s = round_up(seconds / 8.0);
    let mut at_s = 0.0;
    while at_s <= seconds * 1.001 {
        vertical(&mut body, at_s / seconds, &format!("{} s", (at_s * 1000.0).round() / 1000.0));
        at_s += step_s;
    }
    let width = each as f64 * slot_s;
    let middle = |index: usize| ((index as f64 + 0.5) * width / seconds).min(1.0);
    line(&mut body, 0, rates.iter().enumerate().map(|(index, rate)| (middle(index), rate / top)));
    picture("throughput over time", &body)
}

fn latency(outcome: &Outcome) -> String {
    let all: Vec<_> = outcome.tally.latencies().collect();
    let low = all.iter().map(|(_, histogram)| histogram.min()).min().unwrap_or(1).max(1) as f64;
    let high = all.iter().map(|(_, histogram)| histogram.max()).max().unwrap_or(10) as f64;
    let (low, high) = (low.log10().floor(), high.log10().ceil());
    let high = if high > low { high } else { low + 1.0 };
    let mut body = String::new();
    for decade in low as i32..=high as i32 {
        horizontal(
            &mut body,
            (f64::from(decade) - low) / (high - low),
            &duration(10u64.pow(decade.max(0) as u32)),
        );
    }
    for (nines, label) in ["0%", "90%", "99%", "99.9%", "99.99%", "99.999%"].into_iter().enumerate() {
        vertical(&mut body, nines as f64 / NINES_MAX, label);
    }
    for (series, (group, histogram)) in all.iter().enumerate() {
        let up = |ns: u64| ((ns.max(1) as f64).log10() - low) / (high - low);
        line(&mut body, series, quantiles(histogram).map(|(across, ns)| (across, up(ns))));
        let (left, top) = (x(0.02) + series as f64 * 140.0, y(0.95));
        let end = left + 20.0;
        push(
            &mut body,
            format_args!(
                "<line class=\"s s{series}\" x1=\"{left:.1}\" x2=\"{end:.1}\" y1=\"{top:.1}\" y2=\"{top:.1}\"/><text x=\"{:.1}\" \
                 y=\"{:.1}\">{}</text>",
                end + 6.0,
                top + 4.0,
                group.name()
            ),
        );
    }
    picture("latency by share of requests", &body)
}

/// Latencies by nines, as far as there are requests enough to tell.
fn quantiles(histogram: &Histogram<u64>) -> impl Iterator<Item = (f64, u64)> {
    const STEPS: u32 = 200;
    let nines_max = (histogram.len().max(1) as f64).log10().min(NINES_MAX);
    let nines = (0..=STEPS).map(move |step| f64::from(step) / f64::from(STEPS) * nines_max);
    nines.map(|nines| (nines / NINES_MAX, histogram.value_at_quantile(1.0 - 10f64.powf(-nines))))
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::outcome;
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        let rounded = [0.3, 1.0, 1.1, 4.9, 5.1, 1_900_000.0].map(round_up);
        assert_eq!(rounded, [0.5, 1.0, 2.0, 5.0, 10.0, 2_000_000.0]);
    }

    #[test]
    fn the_page_is_whole_and_loads_nothing() {
        let page = page("mixed <&>", "a < b", &[outcome()]);
        assert_eq!(page.matches("<svg").count(), 2);
        assert_eq!(page.matches("</svg>").count(), 2);
        assert!(page.contains("mixed &lt;&amp;&gt;") && page.contains("a &lt; b"));
        assert!(!page.contains("http") && !page.contains("<script"));
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }

    #[test]
    fn points_stay_inside() {
        let page = page("t", "", &[outcome()]);
        let lines = page.split("points=\"").skip(1).filter_map(|rest| rest.split('"').next());
        let mut seen = 0;
        for point in lines.flat_map(|points| points.split(' ')) {
            let (across, up) = point.split_once(',').unwrap();
            let (across, up): (f64, f64) = (across.parse().unwrap(), up.parse().unwrap());
            assert!((LEFT..=WIDTH).contains(&across) && (0.0..=HEIGHT).contains(&up), "{point}");
            seen += 1;
        }
        assert!(seen > 100);
    }
}
