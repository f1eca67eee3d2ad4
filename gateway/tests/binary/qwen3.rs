//! Qwen3 through the whole way, on small checkpoints with random weights, against the reference implementation.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{self, Answer, Gateway, cosine, golden_folder, read_vectors};

/// How near a vector must be to the reference where a CPU computes it in float32...
const LEAST_COSINE: f64 = 0.9999;
/// ...and where a GPU may compute it in a shorter type, from weights in 4 bits.
const LEAST_COSINE_OF_ANY_DEVICE: f64 = 0.999;
/// What golden texts are mixed with.
const LONG_TEXTS: [usize; 3] = [100, 400, 3000];

struct Golden {
    text: String,
    tokens: u64,
    full: Vec<f32>,
    cut: Vec<f32>,
}

struct Model {
    gateway: Gateway,
    golden: Vec<Golden>,
    cut_dimension: usize,
    least_cosine: f64,
}

impl Model {
    /// On a CPU, with its weights held in one of the ways.
    fn start(name: &str, cpu_weights: &str) -> Self {
        Self::start_with(name, &["--device", "cpu", "--cpu-weights", cpu_weights], LEAST_COSINE)
    }

    fn start_with(name: &str, flags: &[&str], least_cosine: f64) -> Self {
        let folder = golden_folder().join(name);
        let file: Value =
            serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let cases = file["cases"].as_array().unwrap();
        let full = read_vectors(&folder.join("full.npy"), cases.len());
        let cut = read_vectors(&folder.join("mrl.npy"), cases.len());
        let golden = cases.iter().zip(full.into_iter().zip(cut)).map(|(case, (full, cut))| Golden {
            text: case["text"].as_str().unwrap().to_owned(),
            tokens: case["token_ids"].as_array().unwrap().len() as u64,
            full,
            cut,
        });
        let mut command = support::command();
        command.arg("--model").arg(&folder).args(["--workers", "1"]).args(flags);
        let gateway = Gateway::start(command, None);
        gateway.wait_until_ready();
        let cut_dimension = usize::try_from(file["mrl_dimensions"].as_u64().unwrap()).unwrap();
        Self { gateway, golden: golden.collect(), cut_dimension, least_cosine }
    }

    fn embed(&self, texts: &[&str], dimensions: Option<usize>) -> Answer {
        let body = json!({"texts": texts, "dimensions": dimensions});
        let answer = self.gateway.post("/api/v1/embed", &body.to_string());
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer
    }
}

fn check(model: &Model) {
    assert_eq!(model.golden.len(), 16);
    let is_near = |vector: &[f32], expected: &[f32], text: &str| {
        assert_eq!(vector.len(), expected.len());
        let cosine = cosine(vector, expected);
        assert!(cosine >= model.least_cosine, "{cosine} for {text:?}");
    };
    for case in &model.golden {
        let full = model.embed(&[&case.text], None);
        assert_eq!(full.json()["usage"]["total_tokens"], case.tokens, "{:?}", case.text);
        is_near(&full.vectors()[0], &case.full, &case.text);
        let cut = model.embed(&[&case.text], Some(model.cut_dimension));
        assert_eq!(cut.json()["dimension"], model.cut_dimension);
        is_near(&cut.vectors()[0], &case.cut, &case.text);
    }
    let texts: Vec<&str> = model.golden.iter().map(|case| case.text.as_str()).collect();
    let batch = model.embed(&texts, None);
    assert_eq!(
        batch.json()["usage"]["total_tokens"],
        model.golden.iter().map(|case| case.tokens).sum::<u64>()
    );
    for (vector, case) in batch.vectors().iter().zip(&model.golden) {
        is_near(vector, &case.full, &case.text);
    }
    let long_texts: Vec<String> = LONG_TEXTS.iter().map(|words| "longer ".repeat(*words)).collect();
    for seed in 1..=3 {
        let mut mixed: Vec<(&str, Option<&Golden>)> =
            long_texts.iter().map(|text| (text.as_str(), None)).collect();
        mixed.extend(model.golden.iter().map(|case| (case.text.as_str(), Some(case))));
        fastrand::Rng::with_seed(seed).shuffle(&mut mixed);
        let texts: Vec<&str> = mixed.iter().map(|(text, _)| *text).collect();
        let (full, cut) = (model.embed(&texts, None), model.embed(&texts, Some(model.cut_dimension)));
        assert_eq!(full.json()["usage"]["truncated"], 1);
        let vectors = full.vectors().into_iter().zip(cut.vectors());
        for ((full, cut), (text, case)) in vectors.zip(&mixed) {
            if let Some(case) = case {
                is_near(&full, &case.full, text);
                is_near(&cut, &case.cut, text);
            }
        }
    }
}

/// What can be wrong with the files of a model.
type Damage = fn(&Path);

fn with_config(folder: &Path, change: impl Fn(&mut Value)) {
    let file = folder.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(file, config.to_string()).unwrap();
}

fn with_weights(folder: &Path, change: impl Fn(&mut Vec<u8>)) {
    let file = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    change(&mut bytes);
    std::fs::write(file, bytes).unwrap();
}

const DAMAGES: [(&str, Damage, &str); 10] = [
    (
        "no weights",
        |folder| std::fs::remove_file(folder.join("model.safetensors")).unwrap(),
        "has no `*.safetensors`",
    ),
    (
        "a pickle only",
        |folder| {
            std::fs::rename(folder.join("model.safetensors"), folder.join("pytorch_model.bin")).unwrap();
        },
        "has its weights only as a pickle, `pytorch_model.bin`",
    ),
    (
        "cut short",
        |folder| with_weights(folder, |bytes| bytes.truncate(bytes.len() / 2)),
        "`model.safetensors` is damaged",
    ),
    (
        "bits flipped in the header's length",
        |folder| with_weights(folder, |bytes| bytes[2] ^= 0x10),
        "`model.safetensors` is damaged",
    ),
    (
        "bits flipped in the header",
        |folder| with_weights(folder, |bytes| bytes[8..200].iter_mut().for_each(|byte| *byte ^= 0x04)),
        "`model.safetensors` is damaged",
    ),
    (
        "another shape",
        |folder| with_config(folder, |config| config["intermediate_size"] = json!(1024)),
        "has shape",
    ),
    (
        "an unknown architecture",
        |folder| with_config(folder, |config| config["model_type"] = json!("qwen9")),
        "`qwen9` is not supported; supported are `bert`",
    ),
    (
        "code of its own",
        |folder| with_config(folder, |config| config["auto_map"] = json!({"AutoModel": "modeling.Model"})),
        "`auto_map` in `config.json` replaces the `AutoModel`",
    ),
    (
        "an adapter",
        |folder| std::fs::write(folder.join("adapter_config.json"), "{}").unwrap(),
        "has an adapter, as `adapter_config.json` says",
    ),
    (
        "a part that nobody computes",
        |folder| {
            let modules = json!([{"idx": 0, "name": "0", "path": "2_Dense", "type": "models.Dense"}]);
            std::fs::write(folder.join("modules.json"), modules.to_string()).unwrap();
        },
        "Dense",
    ),
];

#[test]
fn a_damaged_model_ends_the_gateway_with_one_clear_line_and_nothing_is_tried_again() {
    for (what, damage, expected) in DAMAGES {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        copy_folder(&golden_folder().join("tiny-qwen3"), &model);
        damage(&model);
        let mut command = support::command();
        command.env("AKIDB_LOG_FORMAT", "text").arg("--model").arg(&model).args(["--workers", "2"]);
        let (code, stderr, took) = support::run_to_end(command);
        let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!((code, errors.len()), (78, 1), "{what}: {stderr}");
        assert!(errors[0].contains(expected), "{what}: {}", errors[0]);
        assert!(took.as_secs() < 20, "{what} took {took:?}");
        assert!(!stderr.contains("starts again") && !stderr.contains("Traceback"), "{what}: {stderr}");
    }
}

#[test]
fn what_is_odd_but_harmless_is_served_and_said_once() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    copy_folder(&golden_folder().join("tiny-qwen3"), &model);
    let file = model.join("config.json");
    let config = std::fs::read_to_string(&file).unwrap();
    let odd = r#"{"vocab_size": 1, "\u001b[31mscale": Infinity, "initializer_range": NaN, "alpha": 1e999,"#;
    std::fs::write(&file, config.replacen('{', odd, 1)).unwrap();
    for name in ["model_fp16.safetensors", "model.safetensors.index.json", "a.safetensors"] {
        std::fs::write(model.join(name), "old").unwrap();
    }
    let mut command = support::command();
    command.arg("--model").arg(&model).args(["--workers", "2"]);
    let gateway = Gateway::start(command, None);
    gateway.wait_until_ready();
    let pid = gateway.worker_pids()[0];
    support::kill(pid, nix::sys::signal::Signal::SIGKILL);
    gateway.eventually("a worker was replaced", |gateway| {
        let pids = gateway.worker_pids();
        pids.len() == 2 && !pids.contains(&pid)
    });
    let said = gateway.logged("model warning", |_| true);
    let warning = said["warning"].as_str().unwrap();
    assert!(warning.contains(r"`\u001b[31mscale`, `alpha`;"), "{warning}");
    assert_eq!(gateway.count_logged("model warning"), 1);
    assert_eq!(gateway.embed(&["a text"]).status, 200);
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn float32_weights_give_the_reference_vectors() {
    check(&Model::start("tiny-qwen3", "float32"));
}

#[test]
fn four_bit_weights_give_the_reference_vectors_when_dequantized() {
    check(&Model::start("tiny-qwen3-4bit", "float32"));
}

#[test]
fn four_bit_weights_give_the_reference_vectors_when_kept() {
    check(&Model::start("tiny-qwen3-4bit", "quantized"));
}

#[test]
fn four_bit_weights_give_the_reference_vectors_on_the_device_that_is_chosen() {
    check(&Model::start_with("tiny-qwen3-4bit", &[], LEAST_COSINE_OF_ANY_DEVICE));
}

#[test]
fn a_batch_of_texts_of_all_lengths_has_the_vectors_of_the_single_ones() {
    let model = Model::start("tiny-qwen3", "float32");
    let texts: Vec<String> = [0, 1, 2, 7, 15, 30, 31, 32, 100, 250, 500, 900, 1023, 2040]
        .iter()
        .map(|words| format!("a{}", " b".repeat(*words)))
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let batch = model.embed(&texts, None);
    assert!(batch.json()["usage"]["total_tokens"].as_u64().unwrap() > 4900, "{:?}", batch.json()["usage"]);
    for (text, vector) in texts.iter().zip(batch.vectors()) {
        let single = model.embed(&[text], None).vectors().remove(0);
        assert!(cosine(&vector, &single) >= 0.99999, "a text of {} bytes", text.len());
    }
}

#[test]
fn white_space_around_a_text_is_part_of_it() {
    let model = Model::start("tiny-qwen3", "float32");
    let is_spaced = |case: &&Golden| case.text.len() < 100 && case.text.trim() != case.text;
    let spaced: Vec<&Golden> = model.golden.iter().filter(is_spaced).collect();
    assert!(spaced.len() >= 2);
    for case in spaced {
        let answer = model.embed(&[&case.text, case.text.trim()], None);
        let vectors = answer.vectors();
        assert!(cosine(&vectors[0], &case.full) >= LEAST_COSINE, "{:?}", case.text);
        assert!(cosine(&vectors[1], &case.full) < LEAST_COSINE, "{:?}", case.text);
    }
}
