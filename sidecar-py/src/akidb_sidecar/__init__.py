"""The embedding workers of akidb-gateway: one MLX model per process, and nothing but the forward pass.

Layout, in the order in which a batch passes:

* ``__main__``, ``_cli``: the command line.
* ``_worker``: read a batch, embed it, write the answer.
* ``_connection``, ``_protocol``: frames over standard input; the specification is the documentation of the
  gateway's protocol crate. ``_hang_up``: whether the gateway is still there;
  ``_footprint``: what heartbeats say of memory.
* ``_device``: which device computes; imports MLX, after its ``_blas``.
* ``_engine``: what an engine is. ``_mlx_engine`` loads a model and has MLX compute it, with ``models/`` and
  ``_pooling``, or gives it to ``_kernel_engine``, which computes on a CPU with ``_kernels`` and ``native/``.
* ``_native``: C sources to libraries, with ``_compiler``, kept in a ``_private_folder``.
* ``_prepare``, ``_hub``: where a model's files are. ``_doctor``: a check-up for people.
"""

__version__ = "0.1.0"
