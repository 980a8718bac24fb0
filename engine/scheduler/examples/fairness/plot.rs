use std::error::Error;

use plotters::prelude::*;

use crate::Point;

/// How long a chat waits, over how much of the card is used.
pub(crate) fn draw(points: &[Point], file: &str) -> Result<(), Box<dyn Error>> {
    let most = points.iter().map(|point| point.wait).fold(2.0, f64::max) * 1.3;
    let root = SVGBackend::new(file, (760, 440)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("What a chat waits beside 64 agents at 100,000 tokens", ("sans-serif", 18))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..1.14, (1.0..most).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("part of the card\u{2019}s arithmetic that is used")
        .y_desc("first token p95, times an empty box")
        .x_label_formatter(&|part| format!("{:.0} %", part * 100.0))
        .y_label_formatter(&|times| format!("{times:.0} x"))
        .light_line_style(WHITE)
        .draw()?;
    let limit = [(0.0, 2.0), (1.14, 2.0)];
    chart
        .draw_series(LineSeries::new(limit, &RED))?
        .label("the most that is allowed: 2 x")
        .legend(key(RED));
    for (fair, name, colour) in [
        (true, "members fairly (Polder)", BLUE),
        (false, "all prompts alike", RGBColor(110, 110, 110)),
    ] {
        let of = || points.iter().filter(|point| point.fair == fair);
        chart
            .draw_series(LineSeries::new(of().map(|p| (p.used, p.wait)), &colour))?
            .label(name)
            .legend(key(colour));
        chart.draw_series(of().map(|p| {
            EmptyElement::at((p.used, p.wait))
                + Circle::new((0, 0), 3, colour.filled())
                + Text::new(format!("{} a step", p.step_tokens), (8, 4), ("sans-serif", 12))
        }))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}

fn key(colour: RGBColor) -> impl Fn((i32, i32)) -> PathElement<(i32, i32)> {
    move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour)
}
