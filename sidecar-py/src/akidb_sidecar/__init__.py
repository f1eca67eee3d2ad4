"""The embedding workers of akidb-gateway: one MLX model per process, and nothing but the forward pass.

Layout, in the order in which a batch passes:

* ``__main__``, ``_cli``: the command line.
* ``_worker``: read a batch, embed it, write the answer.
* ``_connection``, ``_protocol``: frames over standard input; the specification is the documentation of the
  gateway's protocol crate.
* ``_engine``: what an engine is. ``_mlx_engine`` is the only one, and the only one to import MLX, with
  ``models/``, ``_pooling`` and ``_blas``.
* ``_prepare``, ``_hub``: where a model's files are. ``_doctor``: a check-up for people.
"""

__version__ = "0.1.0"
