//! Charts as SVG.

use std::path::Path;

use plotters::coord::Shift;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;

use crate::error::{Error, Result};

/// Pixels of a chart, its legend included.
const SIZE: (u32, u32) = (560, 430);
/// Pixels of a line of the legend.
const ROW: u32 = 18;
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
    let draw = || -> Drawn {
        let area = SVGBackend::new(path, (SIZE.0 * charts.len() as u32, SIZE.1)).into_drawing_area();
        area.fill(&WHITE)?;
        for (area, chart) in area.split_evenly((1, charts.len())).iter().zip(charts) {
            draw_chart(area, chart)?;
        }
        area.present()?;
        Ok(())
    };
    draw().map_err(|error| Error::new(format!("cannot draw {}: {error}", path.display())))
}

fn draw_chart(area: &Area<'_>, chart: &Chart) -> Drawn {
    let points = || chart.series.iter().flat_map(|series| series.points.iter());
    let (x, y) = (chart.x.range(points().map(|p| p.0)), chart.y.range(points().map(|p| p.1)));
    // The legend is below: within the chart it would hide a line.
    let (area, legend) = area.split_vertically(SIZE.1 - ROW * chart.series.len() as u32 - 10);
    explain(&legend, chart)?;
    let mut builder = ChartBuilder::on(&area);
    builder.caption(&chart.title, ("sans-serif", 17)).margin(12).x_label_area_size(42).y_label_area_size(64);
    // The four kinds of coordinates are four types.
    match (chart.x.log, chart.y.log) {
        (false, false) => lines(builder.build_cartesian_2d(x.0..x.1, y.0..y.1)?, chart),
        (true, false) => lines(builder.build_cartesian_2d((x.0..x.1).log_scale(), y.0..y.1)?, chart),
        (false, true) => lines(builder.build_cartesian_2d(x.0..x.1, (y.0..y.1).log_scale())?, chart),
        (true, true) => {
            lines(builder.build_cartesian_2d((x.0..x.1).log_scale(), (y.0..y.1).log_scale())?, chart)
        }
    }
}

fn lines<'a, 'b: 'a, X, Y>(
    mut context: ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>,
    chart: &Chart,
) -> Drawn
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let label = |value: &f64| match value.abs() {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e4 => format!("{}k", v / 1e3),
        v if v >= 1.0 => format!("{v:.0}"),
        v => format!("{v:.3}").trim_end_matches('0').trim_end_matches('.').into(),
    };
    let mut mesh = context.configure_mesh();
    mesh.x_desc(&chart.x.name).y_desc(&chart.y.name).light_line_style(WHITE).label_style(("sans-serif", 12));
    mesh.x_labels(7).y_labels(7).x_label_formatter(&label).y_label_formatter(&label).draw()?;
    for series in &chart.series {
        let style = series.colour().stroke_width(2);
        let points = series.points.iter().copied();
        if series.dashed {
            context.draw_series(DashedLineSeries::new(points, 6, 4, style))?;
        } else {
            context.draw_series(LineSeries::new(points.clone(), style))?;
            context.draw_series(points.map(|point| Circle::new(point, 2, style.filled())))?;
        }
    }
    Ok(())
}

/// A line of the legend for each series.
fn explain(area: &Area<'_>, chart: &Chart) -> Drawn {
    for (row, series) in chart.series.iter().enumerate() {
        let y = (ROW * row as u32 + ROW / 2) as i32;
        let style = series.colour().stroke_width(2);
        let pieces: &[(i32, i32)] = if series.dashed { &[(70, 77), (81, 88), (92, 99)] } else { &[(70, 99)] };
        for (from, to) in pieces {
            area.draw(&PathElement::new([(*from, y), (*to, y)], style))?;
        }
        area.draw(&Text::new(series.name.as_str(), (108, y - 6), ("sans-serif", 12)))?;
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
}
