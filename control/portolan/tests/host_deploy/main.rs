//! What `deploy/` has for clusters, held against the binaries and against the tools that read it.

mod chart;
mod files;
mod helm;
mod image;
mod monitoring;
