//! What the workers compute a model with, and in which types.

use crate::machine;

/// What the workers compute a model with, and in which types.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compute {
    /// What computes.
    pub device: Device,
    /// How workers on a CPU hold 4-bit and 8-bit weights.
    pub cpu_weights: CpuWeights,
    /// In which type a GPU computes the products.
    pub gpu_dtype: GpuDtype,
}

impl Compute {
    /// What a worker is told.
    pub(crate) fn flags(self) -> [&'static str; 6] {
        [
            "--device",
            self.device.name(),
            "--cpu-weights",
            self.cpu_weights.name(),
            "--gpu-dtype",
            self.gpu_dtype.name(),
        ]
    }

    /// Whether workers are expected to compute on a GPU that shares the memory of the machine.
    pub(crate) fn is_on_unified_gpu(self) -> bool {
        machine::has_unified_gpu() && self.device != Device::Cpu
    }
}

/// What computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Device {
    /// A GPU where there is one that works, else the CPU.
    #[default]
    Auto,
    /// A GPU, or nothing.
    Gpu,
    /// The CPU.
    Cpu,
}

impl Device {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Gpu, Self::Cpu];

    /// The name that flags use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Gpu => "gpu",
            Self::Cpu => "cpu",
        }
    }
}

/// How workers on a CPU hold 4-bit and 8-bit weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CpuWeights {
    /// As float32, with 4 bytes a weight.
    #[default]
    Float32,
    /// As they are.
    Quantized,
}

impl CpuWeights {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Float32, Self::Quantized];

    /// The name that flags use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Quantized => "quantized",
        }
    }
}

/// In which type a GPU computes the products.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GpuDtype {
    /// Small numbers with 11 bits.
    #[default]
    Float16,
    /// Large and small numbers with 8 bits.
    Bfloat16,
    /// Large and small numbers with 24 bits.
    Float32,
    /// The type of the weights.
    Stored,
}

impl GpuDtype {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Float16, Self::Bfloat16, Self::Float32, Self::Stored];

    /// The name that flags use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Float16 => "float16",
            Self::Bfloat16 => "bfloat16",
            Self::Float32 => "float32",
            Self::Stored => "stored",
        }
    }
}
