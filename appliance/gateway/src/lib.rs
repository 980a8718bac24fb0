//! The public door: TLS, sign-in, API keys, routing, metering, dashboard.
