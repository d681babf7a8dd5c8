//! `/metrics`: counters in the text format of Prometheus.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::app::{App, Served};
use crate::error::ApiError;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let models = app.models()?;
    let mut text = String::new();
    let mut family = |name: &str, kind: &str, help: &str, value: &dyn Fn(&Served) -> f64| {
        let _ = writeln!(text, "# HELP elapid_{name} {help}\n# TYPE elapid_{name} {kind}");
        for served in models {
            let model = served.name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = writeln!(text, "elapid_{name}{{model=\"{model}\"}} {}", value(served));
        }
    };
    let count = |of: fn(&crate::engine::Counters) -> &std::sync::atomic::AtomicU64| {
        move |served: &Served| of(&served.engine.counters).load(Ordering::Relaxed) as f64
    };
    family("requests_total", "counter", "Requests that were begun.", &count(|c| &c.requests));
    family("requests_failed_total", "counter", "Requests that failed.", &count(|c| &c.failed));
    family("requests_cancelled_total", "counter", "Requests whose clients left.", &count(|c| &c.cancelled));
    family(
        "prompt_tokens_total",
        "counter",
        "Tokens of prompts, cached ones too.",
        &count(|c| &c.prompt_tokens),
    );
    family(
        "cached_tokens_total",
        "counter",
        "Tokens of prompts that were not computed again.",
        &count(|c| &c.cached_tokens),
    );
    family("generated_tokens_total", "counter", "Tokens that were generated.", &count(|c| &c.tokens));
    family("steps_total", "counter", "Steps of the batch.", &count(|c| &c.steps));
    family("requests_waiting", "gauge", "Requests in the queue.", &|served| {
        served.engine.counters.waiting.load(Ordering::Relaxed) as f64
    });
    family("requests_running", "gauge", "Requests that have a place in the batch.", &|served| {
        served.engine.counters.running.load(Ordering::Relaxed) as f64
    });
    family("cache_bytes", "gauge", "Bytes of cached prefixes.", &|served| {
        served.engine.cache.stats().bytes as f64
    });
    let _ = writeln!(
        text,
        "# HELP process_resident_memory_bytes Resident memory.\n# TYPE process_resident_memory_bytes gauge\n\
         process_resident_memory_bytes {}\n# HELP elapid_uptime_seconds Seconds since the start.\n\
         # TYPE elapid_uptime_seconds gauge\nelapid_uptime_seconds {}",
        resident().unwrap_or(0),
        app.started.elapsed().as_secs()
    );
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

/// Bytes of the process in memory, where the system says.
pub(crate) fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
