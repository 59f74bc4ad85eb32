"""The doctor: what goes wrong with a critic, each finding a value beside its threshold.

Seven findings are the problems that weight clipping is known for (Arjovsky et al. 2017; Gulrajani
et al. 2017), one is memory, and one compares the samples with a Gaussian's; they are measured of
any run that they apply to. The risk that the run fails is made of them. docs/doctor.md says how,
and how well each predicts bad samples.

- `checks`: each finding in one function, with its threshold and how bad it may be called
- `subject`: the measurements that checks share: scores, gradients, layers, diversity
- `risk`: one number made of all findings, with its reasons
- `diagnosis`: all checks on a run, during training or after it
"""
