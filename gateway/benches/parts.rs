//! Codec, packing and JSON, each alone: `cargo bench -p akidb-gateway`.

#[path = "../examples/support/workloads.rs"]
mod workloads;

use criterion::{Criterion, criterion_group, criterion_main};

fn parts(criterion: &mut Criterion) {
    for (name, workload) in workloads::all() {
        criterion.bench_function(name, |bencher| bencher.iter(&*workload));
    }
}

criterion_group!(benches, parts);
criterion_main!(benches);
