//! The plots, as SVG. The only file that says plotters.

use plotters::coord::Shift;
use plotters::coord::combinators::WithKeyPoints;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::{Report, Row};

/// Pixels, though an SVG has none of its own.
const SIZE: (u32, u32) = (860, 520);
/// Ours, and what it is compared with: told apart by people who see fewer colours, too, and in print.
const OURS: RGBColor = RGBColor(0, 100, 180);
const OTHER: RGBColor = RGBColor(213, 94, 0);
const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(225, 225, 225);
const FONT: &str = "sans-serif";

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A line with a band around it.
struct Curve {
    label: String,
    colour: RGBColor,
    /// `(x, y, low, high)`, by x.
    points: Vec<(f64, f64, f64, f64)>,
}

/// Name and content of each.
pub(super) fn all(report: &Report, caption: &str) -> anyhow::Result<Vec<(&'static str, String)>> {
    let starts = || report.rows.iter().filter(|row| row.measure == "start");
    let network = starts().find(|row| row.ratio.is_none()).map_or("", |row| &row.side);
    let curves = |value: fn(&Row) -> (f64, f64, f64)| {
        let of = |ours: bool| {
            let rows = starts().filter(|row| row.ratio.is_some() == ours);
            let points = rows.map(|row| (f64::from(row.at_once), value(row)));
            points.map(|(x, (y, low, high))| (x, y, low, high)).collect()
        };
        let leased = Curve { label: "in a leased namespace, lease included".to_owned(), colour: OURS, points: of(true) };
        [Curve { label: format!("on the network {network:?}"), colour: OTHER, points: of(false) }, leased]
    };
    let ratios: Vec<f64> = starts().filter_map(|row| row.ratio).collect();
    let latency = Lines {
        title: "Latency of a function's start: median, p5 to p95, and how many times faster",
        unit: "ms until the function runs (logarithmic)",
        curves: curves(|row| (row.median_ms, row.p5_ms, row.p95_ms)),
        ratios,
    };
    let throughput = Lines {
        title: "Starts per second in a batch of starts at once (median)",
        unit: "starts per second",
        curves: curves(|row| (row.per_second, row.per_second, row.per_second)),
        ratios: Vec::new(),
    };
    Ok(vec![
        ("start-latency.svg", draw(|area| latency.draw_logarithmic(area, caption))?),
        ("start-throughput.svg", draw(|area| throughput.draw_linear(area, caption))?),
        ("slots.svg", draw(|area| bars(area, caption, &report.rows))?),
    ])
}

fn draw(on: impl FnOnce(&Area<'_>) -> anyhow::Result<()>) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        on(&area)?;
        area.present()?;
    }
    Ok(svg)
}

/// The title, and below it what it was measured on; gives the rest of the area.
fn titled<'a>(area: &Area<'a>, title: &str, caption: &str) -> anyhow::Result<Area<'a>> {
    let middle = i32::try_from(SIZE.0 / 2)?;
    let centred = |size| (FONT, size).into_font().color(&INK).pos(Pos::new(HPos::Center, VPos::Top));
    area.draw(&Text::new(title.to_owned(), (middle, 14), centred(22)))?;
    area.draw(&Text::new(caption.to_owned(), (middle, 42), centred(14)))?;
    Ok(area.margin(66, 8, 8, 24))
}

/// Curves over the number at once, which goes by its logarithm: each measurement gets its room.
struct Lines {
    title: &'static str,
    unit: &'static str,
    curves: [Curve; 2],
    /// Written at the points of the first curve.
    ratios: Vec<f64>,
}

impl Lines {
    fn all<'a>(&'a self, value: impl Fn(&(f64, f64, f64, f64)) -> f64 + Copy + 'a) -> impl Iterator<Item = f64> + 'a {
        self.curves.iter().flat_map(move |curve| curve.points.iter().map(value))
    }

    /// The number at once: a tick for each measurement.
    fn across(&self) -> WithKeyPoints<LogCoord<f64>> {
        let (first, last) = (self.all(|p| p.0).fold(f64::MAX, f64::min), self.all(|p| p.0).fold(1.0, f64::max));
        let ticks = self.curves[0].points.iter().map(|point| point.0).collect();
        (first.min(last) / 1.1..last * 1.1).log_scale().base(2.0).with_key_points(ticks)
    }

    fn draw_linear(&self, area: &Area<'_>, caption: &str) -> anyhow::Result<()> {
        let top = self.all(|point| point.3).fold(1.0, f64::max);
        self.draw(area, caption, 0.0..top * 1.25)
    }

    fn draw_logarithmic(&self, area: &Area<'_>, caption: &str) -> anyhow::Result<()> {
        let bottom = self.all(|point| point.2).fold(f64::MAX, f64::min).clamp(0.1, 1e9) / 1.3;
        let top = self.all(|point| point.3).fold(1.0, f64::max) * 2.2;
        let decades = (-1..7).flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(decade)));
        let ticks = decades.filter(|tick| (bottom..top).contains(tick)).collect();
        self.draw(area, caption, (bottom..top).log_scale().with_key_points(ticks))
    }

    fn draw<Y>(&self, area: &Area<'_>, caption: &str, up: Y) -> anyhow::Result<()>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let area = titled(area, self.title, caption)?;
        let mut chart = ChartBuilder::on(&area).x_label_area_size(52).y_label_area_size(78).build_cartesian_2d(self.across(), up)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(FAINT)
            .light_line_style(TRANSPARENT)
            .axis_style(INK)
            .x_desc("starts at once")
            .y_desc(self.unit)
            .axis_desc_style((FONT, 16))
            .label_style((FONT, 14))
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.0}"))
            .draw()?;
        for curve in &self.curves {
            let colour = curve.colour;
            let upper = curve.points.iter().map(|&(x, _, _, high)| (x, high));
            let lower = curve.points.iter().rev().map(|&(x, _, low, _)| (x, low));
            chart.draw_series([Polygon::new(upper.chain(lower).collect::<Vec<_>>(), colour.mix(0.13))])?;
            let line = curve.points.iter().map(|&(x, y, ..)| (x, y));
            chart
                .draw_series(LineSeries::new(line.clone(), colour.stroke_width(3)))?
                .label(&curve.label)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(3)));
            chart.draw_series(line.map(|point| Circle::new(point, 5, colour.filled())))?;
        }
        let style = (FONT, 15).into_font().color(&INK).pos(Pos::new(HPos::Center, VPos::Bottom));
        let written = self.ratios.iter().zip(&self.curves[0].points);
        chart.draw_series(
            written.map(|(ratio, &(x, y, ..))| EmptyElement::at((x, y)) + Text::new(format!("{ratio:.1}×"), (0, -9), style.clone())),
        )?;
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(FAINT)
            .label_font((FONT, 15))
            .margin(12)
            .draw()?;
        Ok(())
    }
}

/// Fill and removal: the daemon's bar beside the other's.
fn bars(area: &Area<'_>, caption: &str, rows: &[Row]) -> anyhow::Result<()> {
    let area = titled(area, "Filling and removing slots: the daemon beside the bare engine", caption)?;
    let rows: Vec<&Row> = rows.iter().filter(|row| row.measure != "start").collect();
    let top = rows.iter().map(|row| row.per_second).fold(1.0, f64::max) * 1.2;
    let mut chart = ChartBuilder::on(&area).x_label_area_size(70).y_label_area_size(78).build_cartesian_2d(0.0..5.0, 0.0..top)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .x_labels(0)
        .y_desc("buddies per second")
        .axis_desc_style((FONT, 16))
        .label_style((FONT, 14))
        .y_label_formatter(&|y| if top < 10.0 { format!("{y:.1}") } else { format!("{y:.0}") })
        .draw()?;
    for (place, row) in [0.4, 1.4, 2.8, 3.8].into_iter().zip(&rows) {
        bar(&area, &mut chart, place, row)?;
    }
    Ok(())
}

type BarChart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

fn bar(area: &Area<'_>, chart: &mut BarChart<'_, '_>, left: f64, row: &Row) -> anyhow::Result<()> {
    let colour = if row.ratio.is_some() { OURS } else { OTHER };
    let text = |size, vertical| (FONT, size).into_font().color(&INK).pos(Pos::new(HPos::Center, vertical));
    let middle = left + 0.4;
    chart.draw_series([Rectangle::new([(left, 0.0), (left + 0.8, row.per_second)], colour.mix(0.85).filled())])?;
    let ratio = row.ratio.map(|ratio| format!(" ({ratio:.2}×)")).unwrap_or_default();
    let rate = Text::new(format!("{:.1}/s{ratio}", row.per_second), (0, -6), text(16, VPos::Bottom));
    chart.draw_series([EmptyElement::at((middle, row.per_second)) + rate])?;
    let at_once = if row.at_once == 1 { "one at a time".to_owned() } else { format!("{} at a time", row.at_once) };
    let side = if row.side == "one by one" { "bare loop" } else { &row.side };
    let below = [(format!("{}: {side}", row.measure), 15, 10), (at_once, 14, 32)];
    // Below the axis there is no coordinate to draw at, so the labels are set by pixels of the whole area.
    let (x, y) = chart.plotting_area().map_coordinate(&(middle, 0.0));
    let (left, top) = area.get_base_pixel();
    for (words, size, down) in below {
        area.draw(&Text::new(words, (x - left, y - top + down), text(size, VPos::Top)))?;
    }
    Ok(())
}
