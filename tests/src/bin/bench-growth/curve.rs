//! Costs at several sizes: how they grow, and how that looks.
//!
//! The slope is that of a straight line through the logarithms, so that `cost ~ size ^ slope`: 0 does not
//! grow, 1 grows with the size, and 0.3 is a third more digits for each digit of the size.

use std::fmt::Write;

use serde_json::{Value, json};

/// What one thing costs at several sizes of another.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// What there is much of: `opens`.
    pub of: String,
    /// What is done: `4 KiB read`.
    pub what: String,
    /// Unit of the costs.
    pub unit: &'static str,
    /// Sizes with costs, from the smallest to the largest.
    pub points: Vec<(usize, f64)>,
}

impl Curve {
    /// The cost at the largest size over that at the smallest.
    pub fn ratio(&self) -> Option<f64> {
        let ((_, first), (_, last)) = (self.points.first()?, self.points.last()?);
        (self.points.len() > 1 && *first > 0.0).then_some(last / first)
    }

    /// The fitted line: the cost at size 1, and the slope.
    pub fn fit(&self) -> Option<(f64, f64)> {
        let logs: Vec<(f64, f64)> = self
            .points
            .iter()
            .filter(|(size, cost)| *size > 0 && *cost > 0.0)
            .map(|(size, cost)| ((*size as f64).ln(), cost.ln()))
            .collect();
        let count = logs.len() as f64;
        let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(|it| it.0), mean(|it| it.1));
        let spread: f64 = logs.iter().map(|it| (it.0 - x).powi(2)).sum();
        let together: f64 = logs.iter().map(|it| (it.0 - x) * (it.1 - y)).sum();
        let slope = (spread > 0.0).then(|| together / spread)?;
        Some(((y - slope * x).exp(), slope))
    }

    /// The curve as it stands in the report.
    pub fn to_json(&self) -> Value {
        let point = |(size, cost): &(usize, f64)| json!({"size": size, "cost": cost});
        json!({
            "of": self.of,
            "what": self.what,
            "unit": self.unit,
            "points": self.points.iter().map(point).collect::<Vec<_>>(),
            "slope": self.fit().map(|(_, slope)| slope),
            "ratio": self.ratio(),
        })
    }
}

const WIDTH: f64 = 320.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 52.0;
const TOP: f64 = 34.0;
const RIGHT: f64 = 14.0;
const BOTTOM: f64 = 34.0;
const COLUMNS: usize = 3;

/// All curves, each in a frame of its own: sizes by their digits from left to right, costs from nothing
/// upwards, what was measured as dots, the fitted line dashed.
pub fn svg(curves: &[Curve]) -> String {
    let rows = curves.len().div_ceil(COLUMNS);
    let (width, height) = (WIDTH * COLUMNS as f64, HEIGHT * rows as f64);
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>"
    );
    for (at, curve) in curves.iter().enumerate() {
        let (x, y) = ((at % COLUMNS) as f64 * WIDTH, (at / COLUMNS) as f64 * HEIGHT);
        let _ = writeln!(out, "<g transform=\"translate({x} {y})\">");
        frame(&mut out, curve);
        let _ = writeln!(out, "</g>");
    }
    out.push_str("</svg>\n");
    out
}

/// Text as it may stand in a document.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn frame(out: &mut String, curve: &Curve) {
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    let most = curve.points.iter().map(|it| it.1).fold(0.0, f64::max);
    let top = if most > 0.0 { most * 1.2 } else { 1.0 };
    let log = |size: f64| size.max(1.0).log10();
    let sizes = || curve.points.iter().map(|it| it.0 as f64);
    let (low, high) = (log(sizes().fold(f64::MAX, f64::min)), log(sizes().fold(1.0, f64::max)));
    let span = if high > low { high - low } else { 1.0 };
    let x = |size: f64| LEFT + (log(size) - low) / span * (right - LEFT - 16.0) + 8.0;
    let y = |cost: f64| bottom - (cost / top).clamp(0.0, 1.0) * (bottom - TOP);
    let title = escaped(&format!("{} by {}", curve.what, curve.of));
    let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"14\" font-weight=\"bold\">{title}</text>");
    if let Some((first, slope)) = curve.fit() {
        let ratio =
            curve.ratio().map_or(String::new(), |ratio| format!(", largest / smallest {ratio:.2}"));
        let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"28\">slope {slope:.3}{ratio}</text>");
        let line: Vec<String> = (0..=24)
            .map(|step| 10f64.powf(low + span * f64::from(step) / 24.0))
            .map(|size| format!("{:.1},{:.1}", x(size), y(first * size.powf(slope))))
            .collect();
        let line = line.join(" ");
        let _ = writeln!(
            out,
            "<polyline points=\"{line}\" fill=\"none\" stroke=\"#888\" stroke-dasharray=\"4 3\"/>"
        );
    }
    let _ = writeln!(
        out,
        "<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"black\"/>\
         <text x=\"4\" y=\"{:.1}\">{:.3}</text><text x=\"4\" y=\"{bottom}\">0 {}</text>",
        y(most) + 4.0,
        most,
        escaped(curve.unit),
    );
    for (size, cost) in &curve.points {
        let (x, y) = (x(*size as f64), y(*cost));
        let _ = writeln!(
            out,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"#1f5fa8\"><title>{size}: {cost:.3}</title>\
             </circle><text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{size}</text>",
            bottom + 14.0,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(usize, f64)]) -> Curve {
        Curve { of: "opens".into(), what: "a < b".into(), unit: "µs", points: points.to_vec() }
    }

    #[test]
    fn the_slope_is_the_exponent() {
        let (first, slope) = curve(&[(1, 3.0), (10, 30.0), (1000, 3000.0)]).fit().unwrap();
        assert!((first - 3.0).abs() < 1e-9 && (slope - 1.0).abs() < 1e-9);
        let (_, slope) = curve(&[(10, 2.0), (1000, 2.0)]).fit().unwrap();
        assert!(slope.abs() < 1e-9);
        assert_eq!(curve(&[(10, 2.0)]).fit(), None);
        assert_eq!(curve(&[(10, 2.0), (1000, 5.0)]).ratio(), Some(2.5));
        assert_eq!(curve(&[(10, 2.0)]).ratio(), None);
    }

    #[test]
    fn a_plot_has_all_points_and_no_bare_signs() {
        let text = svg(&[curve(&[(1, 3.0), (100_000, 4.0)]), curve(&[])]);
        assert_eq!(text.matches("<circle").count(), 2);
        assert!(text.contains("a &lt; b by opens") && text.contains(">100000</text>"));
        assert_eq!((text.matches("<g ").count(), text.matches("</g>").count()), (2, 2));
        assert!(!text.contains("NaN") && !text.contains("inf"));
    }
}
