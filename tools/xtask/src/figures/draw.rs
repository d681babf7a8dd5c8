//! Charts as SVG.

use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;

use crate::error::{Context, Error, Result};

/// Pixels of a chart.
const SIZE: (u32, u32) = (600, 360);
/// Pixels at the right, for the names of the lines, which stand at their ends.
const NAMES: u32 = 140;
/// Pixels between two names, at least.
const ROW: i32 = 15;
/// What nothing but the page's own colours decides: text and grid on a light and on a dark page.
const STYLE: &str = "<style>text{fill:#24292f}line{stroke:#d0d7de}@media(prefers-color-scheme:dark){text{fill:#d0d7de}line{stroke:#373e47}}</style>";
const COLOURS: [RGBColor; 4] =
    [RGBColor(31, 90, 166), RGBColor(200, 80, 30), RGBColor(60, 140, 60), RGBColor(120, 80, 150)];

/// An axis.
pub struct Axis {
    name: String,
    log: bool,
}

impl Axis {
    /// Of a linear scale from 0 on.
    pub fn linear(name: &str) -> Self {
        Self { name: name.into(), log: false }
    }
    /// Of a logarithmic scale.
    pub fn log(name: &str) -> Self {
        Self { name: name.into(), log: true }
    }

    /// What of it is shown, by the values there are.
    fn range(&self, values: impl Iterator<Item = f64>) -> (f64, f64) {
        let (least, most) = values.fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(v), b.max(v)));
        match (least <= most, self.log) {
            (false, _) => (1.0, 10.0),
            (true, false) => (0.0, if most > 0.0 { 1.1 * most } else { 1.0 }),
            (true, true) => (least.max(1e-12) / 1.5, most.max(1e-12) * 1.5),
        }
    }
}

impl Axis {
    /// Where ticks are: at 1, 2 and 5 times the powers of ten, of a long logarithmic axis at the powers alone.
    fn ticks(&self, (from, to): (f64, f64)) -> Vec<f64> {
        if !self.log {
            let wide = (to - from) / 8.0;
            let power = 10f64.powf(wide.log10().floor());
            let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|step| *step >= wide);
            let step = step.unwrap_or(wide);
            return (0..=16).map(|i| from + step * f64::from(i)).filter(|tick| *tick <= to).collect();
        }
        let many: &[f64] = if to / from > 1e4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let powers = (from.log10().floor() as i32..=to.log10().ceil() as i32).map(|p| 10f64.powi(p));
        powers
            .flat_map(|power| many.iter().map(move |m| m * power))
            .filter(|t| (from..=to).contains(t))
            .collect()
    }

    fn scale(&self, (from, to): (f64, f64)) -> Scale {
        Scale { range: from..to, log: self.log, ticks: self.ticks((from, to)) }
    }
}

/// An axis with the values that it shows, for plotters: linear and logarithmic are of one type.
struct Scale {
    range: Range<f64>,
    log: bool,
    ticks: Vec<f64>,
}

impl Ranged for Scale {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let scaled = |v: f64| if self.log { v.ln() } else { v };
        let (from, to) = (scaled(self.range.start), scaled(self.range.end));
        let share = (scaled(*value) - from) / (to - from);
        limit.0 + (f64::from(limit.1 - limit.0) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// A line.
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    /// Computed, not measured.
    pub dashed: bool,
    /// What belongs together has one colour.
    pub colour: usize,
}

impl Series {
    fn colour(&self) -> RGBColor {
        COLOURS[self.colour % COLOURS.len()]
    }
}

/// A chart.
pub struct Chart {
    title: String,
    x: Axis,
    y: Axis,
    pub series: Vec<Series>,
}

impl Chart {
    /// A chart without lines.
    pub fn new(title: &str, x: Axis, y: Axis) -> Self {
        Self { title: title.into(), x, y, series: Vec::new() }
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Draws charts side by side.
pub fn draw(path: &Path, charts: &[Chart]) -> Result<()> {
    let mut svg = String::new();
    let mut draw = || -> Drawn {
        let size = (SIZE.0 * charts.len() as u32, SIZE.1);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        for (area, chart) in area.split_evenly((1, charts.len())).iter().zip(charts) {
            draw_chart(area, chart)?;
        }
        area.present()?;
        Ok(())
    };
    draw().map_err(|error| Error::new(format!("cannot draw {}: {error}", path.display())))?;
    let head = svg.find('>').map_or(0, |end| end + 1);
    svg.insert_str(head, STYLE);
    std::fs::write(path, svg).context(|| format!("cannot write {}", path.display()))
}

fn draw_chart(area: &Area<'_>, chart: &Chart) -> Drawn {
    let points = || chart.series.iter().flat_map(|series| series.points.iter());
    let (x, y) = (chart.x.range(points().map(|p| p.0)), chart.y.range(points().map(|p| p.1)));
    let mut builder = ChartBuilder::on(area);
    builder.caption(&chart.title, ("sans-serif", 17)).margin(12).margin_right(NAMES);
    builder.x_label_area_size(42).y_label_area_size(64);
    let mut context = builder.build_cartesian_2d(chart.x.scale(x), chart.y.scale(y))?;
    let label = |value: &f64| match value.abs() {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e4 => format!("{}k", v / 1e3),
        v if v >= 1.0 => format!("{v:.0}"),
        v => format!("{v:.3}").trim_end_matches('0').trim_end_matches('.').into(),
    };
    let mut mesh = context.configure_mesh();
    mesh.axis_style(RGBColor(128, 128, 128))
        .x_desc(&chart.x.name)
        .y_desc(&chart.y.name)
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 12));
    mesh.x_labels(24).y_labels(24).x_label_formatter(&label).y_label_formatter(&label).draw()?;
    let mut names = Vec::new();
    for series in &chart.series {
        let style = series.colour().stroke_width(2);
        let points = series.points.iter().copied();
        if series.dashed {
            context.draw_series(DashedLineSeries::new(points, 6, 4, style))?;
        } else {
            context.draw_series(LineSeries::new(points.clone(), style))?;
            context.draw_series(points.map(|point| Circle::new(point, 2, style.filled())))?;
        }
        names.extend(series.points.last().map(|last| (context.backend_coord(last), series)));
    }
    // From the top down, none over another.
    names.sort_by_key(|((_, y), _)| *y);
    let (left, top) = area.get_base_pixel();
    let mut least = i32::MIN;
    for ((x, y), series) in names {
        let y = (y - top - 6).max(least);
        least = y + ROW;
        // A short line of the series' colour ties the name to it.
        let (from, middle) = (x - left + 6, y + 6);
        area.draw(&PathElement::new([(from, middle), (from + 10, middle)], series.colour().stroke_width(3)))?;
        area.draw(&Text::new(series.name.as_str(), (from + 14, y), ("sans-serif", 12)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_becomes_an_svg_with_its_words() {
        let mut chart = Chart::new("the title", Axis::log("across"), Axis::linear("up"));
        let points = vec![(1.0, 2.0), (10.0, 3.0), (100.0, 2.5)];
        chart.series.push(Series { name: "a line".into(), points: points.clone(), dashed: false, colour: 0 });
        chart.series.push(Series { name: "another".into(), points, dashed: true, colour: 4 });
        let folder = std::env::temp_dir().join(format!("elapid-figure-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("chart.svg");
        draw(&path, &[chart]).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        for words in ["<svg", "the title", "across", "a line", "another"] {
            assert!(svg.contains(words), "{words}");
        }
    }

    #[test]
    fn no_points_are_no_panic() {
        for axis in [Axis::log("x"), Axis::linear("x")] {
            let (from, to) = axis.range(std::iter::empty());
            assert!(from < to);
        }
        assert_eq!(Axis::linear("x").range([0.0].into_iter()), (0.0, 1.0));
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(Axis::linear("x").ticks((0.0, 131_072.0)).last(), Some(&120_000.0));
        assert_eq!(Axis::log("x").ticks((3.0, 120.0)), [5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(Axis::log("x").ticks((50.0, 2e6)), [100.0, 1000.0, 1e4, 1e5, 1e6]);
    }
}
