"""The doctor: what goes wrong with a critic, each finding a value beside its threshold.

Seven findings are the problems that weight clipping is known for (Arjovsky et al. 2017; Gulrajani
et al. 2017), and the eighth is memory; they are measured of any critic that they apply to.
docs/doctor.md says how, and how well each predicts bad samples.

- `checks`: each finding in one function, with its threshold and how bad it may be called
- `subject`: the measurements that checks share: scores, gradients, layers, diversity
- `diagnosis`: all checks on a run, during training or after it
"""
