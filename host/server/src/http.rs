//! Connections: listening, TLS, limits, who may ask, and a clean end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use elapid::Model;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, getrlimit, setrlimit};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::app::{App, ServeOptions, Served};
use crate::error::ApiError;
use crate::request::Owner;
use crate::{metrics, ollama, openai, page, plain, responses};

/// The time that a client has to send the head of a request, and for the handshake of TLS.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// The largest head of a request in bytes.
const HEAD_BYTES: usize = 64 << 10;
/// Open files that are no connections.
const OTHER_FILES: usize = 64;
/// The time for the last tokens, and for saving what is cached, when the server stops.
const SAVE_TIME: Duration = Duration::from_secs(60);
/// The time that connections have to end after that.
const STOP_TIME: Duration = Duration::from_secs(5);

/// Why a server did not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError<E> {
    /// It can't listen.
    #[error("cannot listen on {address}: {cause}{}", listen_hint(cause))]
    Listen {
        /// Where.
        address: String,
        /// The system's reason.
        #[source]
        cause: io::Error,
    },
    /// A file for TLS can't be used.
    #[error("{path}: {reason}", path = path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The models were not loaded, or can't be served.
    #[error("{0}")]
    Load(E),
    /// The system has no threads or signals for it.
    #[error("cannot start: {0}")]
    System(#[source] io::Error),
}

fn listen_hint(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::AddrInUse => ": another program uses the port; choose another one",
        io::ErrorKind::PermissionDenied => ": choose a port of 1024 or more, or run with the right to use it",
        io::ErrorKind::AddrNotAvailable => ": this machine does not have that address",
        _ => "",
    }
}

/// Serves models until SIGTERM or SIGINT, on a runtime of its own. It listens first and then calls `load` for the models and their names:
/// until they are loaded, clients get status 503. Then it calls `ready` with the address.
///
/// On a signal it takes no more requests, ends all texts where they are, saves what is cached if there is a folder for it, and returns.
///
/// # Errors
/// [`ServeError`].
pub fn serve<E: From<elapid::Error> + Send + 'static>(
    options: ServeOptions,
    load: impl FnOnce() -> Result<Vec<(String, Model)>, E> + Send + 'static,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), ServeError<E>> {
    serve_until(options, load, ready, std::future::pending())
}

/// As [`serve`], until `stop` is done or a signal comes.
///
/// # Errors
/// As [`serve`].
pub fn serve_until<E: From<elapid::Error> + Send + 'static>(
    options: ServeOptions,
    load: impl FnOnce() -> Result<Vec<(String, Model)>, E> + Send + 'static,
    ready: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError<E>> {
    // Handlers only wait: the models have threads of their own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(ServeError::System)?;
    let served = runtime.block_on(run(options, load, ready, stop));
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

async fn run<E: From<elapid::Error> + Send + 'static>(
    options: ServeOptions,
    load: impl FnOnce() -> Result<Vec<(String, Model)>, E> + Send + 'static,
    ready: impl FnOnce(SocketAddr),
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError<E>> {
    let tls = options.tls.as_ref().map(|(certificates, key)| acceptor(certificates, key)).transpose();
    let tls = tls.map_err(|(path, reason)| ServeError::Tls { path, reason })?;
    let address = format!("{}:{}", options.host, options.port);
    let listen = |cause| ServeError::Listen { address: address.clone(), cause };
    let listener = TcpListener::bind((options.host.as_str(), options.port)).await.map_err(listen)?;
    let local = listener.local_addr().map_err(listen)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::System)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::System)?;
    let mut stop = std::pin::pin!(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = stop => {}
        }
    });
    let app = Arc::new(App::new(options));
    let (closing, closed) = watch::channel(false);
    let accepting = tokio::spawn(accept(listener, tls, Arc::clone(&app), closed));
    let loading = {
        let app = Arc::clone(&app);
        tokio::task::spawn_blocking(move || {
            let models = load()?.into_iter();
            let served = models.map(|(name, model)| Served::new(name, model, &app.options).map(Arc::new));
            let served = served.collect::<Result<Vec<_>, _>>()?;
            // Nobody else sets it.
            let _ = app.models.set(served);
            Ok::<(), E>(())
        })
    };
    let loaded = tokio::select! {
        loaded = loading => Some(loaded),
        () = stop.as_mut() => None,
    };
    match loaded {
        None => {}
        Some(Ok(Err(error))) => return Err(ServeError::Load(error)),
        Some(Err(panicked)) => return Err(ServeError::System(io::Error::other(panicked))),
        Some(Ok(Ok(()))) => {
            ready(local);
            notify("READY=1");
            stop.await;
        }
    }
    notify("STOPPING=1");
    // All receivers may be gone.
    let _ = closing.send(true);
    let models = app.models.get().cloned().unwrap_or_default();
    models.iter().for_each(|served| served.engine.stop());
    let stopped = tokio::task::spawn_blocking(move || models.iter().for_each(|served| served.engine.join()));
    let _ = tokio::time::timeout(SAVE_TIME, stopped).await;
    let _ = tokio::time::timeout(STOP_TIME, accepting).await;
    Ok(())
}

/// Tells the service manager, where there is one.
fn notify(state: &str) {
    #[cfg(target_os = "linux")]
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET") {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStrExt;
        use std::os::unix::net::{SocketAddr, UnixDatagram};
        let address = match socket.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            _ => SocketAddr::from_pathname(&socket),
        };
        // It does not matter to the server whether anybody listens.
        let _ = UnixDatagram::unbound().and_then(|from| from.send_to_addr(state.as_bytes(), &address?));
    }
    #[cfg(not(target_os = "linux"))]
    let _ = state;
}

/// TLS by the certificates and the key of two PEM files. An error is the file and what is wrong with it.
fn acceptor(certificates: &Path, key: &Path) -> Result<TlsAcceptor, (PathBuf, String)> {
    let wrong = |path: &Path, reason: String| (path.to_path_buf(), reason);
    let chain = CertificateDer::pem_file_iter(certificates).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = chain.map_err(|error| wrong(certificates, format!("no certificates in PEM: {error}")))?;
    let private = PrivateKeyDer::from_pem_file(key);
    let private = private.map_err(|error| wrong(key, format!("no private key in PEM: {error}")))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, private));
    let config =
        config.map_err(|error| wrong(certificates, format!("can't be used with the key: {error}")))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Takes connections until the server stops, then waits for their last answers.
async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    app: Arc<App>,
    mut closed: watch::Receiver<bool>,
) {
    let most = app.options.connections.min(files_for_connections());
    let room = Arc::new(Semaphore::new(most));
    let routes = router(Arc::clone(&app));
    loop {
        let next = async { (Arc::clone(&room).acquire_owned().await, listener.accept().await) };
        let (place, stream) = tokio::select! {
            _ = closed.changed() => break,
            next = next => next,
        };
        let Ok((stream, _)) = stream else {
            // Too many open files, mostly: some will be closed.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // Small pieces of text go out at once.
        let _ = stream.set_nodelay(true);
        let (routes, tls, closed) = (routes.clone(), tls.clone(), closed.clone());
        tokio::spawn(async move {
            connection(stream, tls, routes, closed).await;
            drop(place);
        });
    }
    drop(listener);
    // All places are free when all connections have ended.
    let _ = room.acquire_many(u32::try_from(most).unwrap_or(u32::MAX)).await;
}

/// Raises the limit of open files as far as the system allows. Returns how many connections it has room for.
fn files_for_connections() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Otherwise it stays as it is.
    let _ = setrlimit(Resource::Nofile, limit);
    let files = getrlimit(Resource::Nofile).current.and_then(|files| usize::try_from(files).ok());
    files.unwrap_or(usize::MAX).saturating_sub(OTHER_FILES).max(1)
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    routes: Router,
    closed: watch::Receiver<bool>,
) {
    match tls {
        None => talk(stream, routes, closed).await,
        Some(tls) => {
            if let Ok(Ok(stream)) = tokio::time::timeout(HEAD_TIME, tls.accept(stream)).await {
                talk(stream, routes, closed).await;
            }
        }
    }
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    routes: Router,
    mut closed: watch::Receiver<bool>,
) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    tokio::pin!(connection);
    tokio::select! {
        // A client that breaks off or sends nonsense ends its own connection only.
        _ = connection.as_mut() => return,
        _ = closed.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// All paths.
fn router(app: Arc<App>) -> Router {
    let open = Router::new().merge(page::routes()).route("/health", axum::routing::get(plain::health));
    let guarded = Router::new()
        .merge(openai::routes())
        .merge(responses::routes())
        .merge(ollama::routes())
        .merge(plain::routes())
        .merge(metrics::routes())
        .layer(from_fn_with_state(Arc::clone(&app), guard));
    let router = open
        .merge(guarded)
        .fallback(async |request: Request| {
            let path: String = request.uri().path().chars().take(100).collect();
            ApiError::new(StatusCode::NOT_FOUND, format!("there is nothing at {path:?}"))
        })
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method, such as POST")
        })
        .layer(DefaultBodyLimit::max(app.options.max_body))
        .layer(from_fn_with_state(Arc::clone(&app), bound))
        .with_state(Arc::clone(&app));
    match cors(&app.options.origins) {
        Some(cors) => router.layer(cors),
        None => router,
    }
}

fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let headers = [header::AUTHORIZATION, header::CONTENT_TYPE];
    Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(headers),
    )
}

/// Limits the time of a request, until its answer begins.
async fn bound(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match tokio::time::timeout(app.options.timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(StatusCode::GATEWAY_TIMEOUT, "the request took too long").into_response(),
    }
}

/// Lets requests pass that have a key, if one is needed, and that no foreign page has made a browser send.
async fn guard(State(app): State<Arc<App>>, mut request: Request<Body>, next: Next) -> Response {
    let headers = request.headers();
    if !origin_allowed(&app.options.origins, headers) {
        let message = "this web page may not use the server: allow its origin when the server is started";
        return ApiError::new(StatusCode::FORBIDDEN, message).into_response();
    }
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = authorization.map(|value| value.strip_prefix("Bearer ").unwrap_or(value).trim());
    let key = bearer.or_else(|| headers.get("x-api-key").and_then(|value| value.to_str().ok()));
    match app.owner(key) {
        Err(error) => error.into_response(),
        Ok(owner) => {
            request.extensions_mut().insert(Owner(owner));
            next.run(request).await
        }
    }
}

/// Whether a browser sends this for the server's own page, or for one of an allowed origin. Only an address or `localhost` counts as the
/// server's own: any other name may be one of an attacker that leads to this machine.
fn origin_allowed(allowed: &[String], headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok()) else {
        return true;
    };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    let local = name == "localhost" || name.parse::<IpAddr>().is_ok();
    let own = local && origin.split_once("://").is_some_and(|(_, authority)| authority == host);
    own || allowed.iter().any(|allowed| allowed == "*" || allowed == origin)
}
