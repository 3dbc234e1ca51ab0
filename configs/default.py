"""Every setting, with the paper's value where the paper has one.

Other configs start from this one and say what they change and why. Sources in
brackets: GS = Gemma Scope (arXiv 2408.05147), section.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  config = ml_collections.ConfigDict()
  config.workdir = "runs/default"  # everything is written below it
  config.seed = 0  # of batches' order and initial weights
  config.progress = True  # progress bars
  # Several runs, such as one for each site: a name, which is that of its folder
  # below workdir, and what is not as here, as ({"name": "mlp", "train.site":
  # "mlp.12"},). Where activations are the same they share the store. (): one.
  config.runs = ()

  # Devices: batch rows and sequences x latents, heads and words. 1 x 1: the
  # default device. GS 4.1: data for small widths, model for large ones.
  config.mesh = ml_collections.ConfigDict()
  config.mesh.data = 1
  config.mesh.model = 1
  # Split the language model's weights over data, too: less memory, more traffic.
  config.mesh.fully_sharded = False
  config.mesh.memory_gib = 0.0  # of a device; 0: it is asked

  config.lm = ml_collections.ConfigDict()
  config.lm.source = "google/gemma-2-2b"  # Hub id, folder, *.gguf or "demo"
  config.lm.dtype = "float32"  # GS 4.7: 32-bit precision throughout
  config.lm.delta = (
    ""  # a fine-tune of it: folder that experiments.finetune left
  )

  config.data = ml_collections.ConfigDict()
  # GS trains on Gemma's pre-training text, which is not public; this is the
  # data set that SAELens names for the released SAEs.
  config.data.sources = ("hf:monology/pile-uncopyrighted",)
  config.data.packages = ""  # folder of packaged texts; "": the default
  config.data.window = 1024  # tokens in a sequence, BOS included (GS 3.1)
  config.data.packed = True  # join documents by a blank line
  config.data.held_out = 0.05  # share of documents never trained on
  config.data.piece_characters = 0  # cut longer documents there; 0: never
  # Documents as the user's turn of a chat, whose prefix is never trained on:
  # for instruction-tuned models (GS 4.5).
  config.data.chat = False
  # Rollouts to harvest instead of sources: the .json that the instruct study
  # left below rollouts/. Needs chat, for the policy that excludes the prefix.
  config.data.rollouts = ""
  # Where training gets activations from: "": the store that harvest left below
  # workdir; the path or URL of a store; "grpc://HOST:PORT,..." (or grpc+tls):
  # servers of one (experiments.serve); "live": the model itself, nothing stored.
  config.data.source = ""
  config.data.source_timeout = 300.0  # seconds to wait for a lost server
  config.data.source_ca = ""  # file of the certificate that signed a server's

  config.harvest = ml_collections.ConfigDict()
  config.harvest.sites = ("res.12",)
  config.harvest.rows = 4_000_000_000  # activations a site (GS Table 1)
  config.harvest.rows_per_shard = 1 << 20  # 9 GiB at width 2304 (GS: 10-20)
  # Sequences a forward pass; 0: as many as the devices' memory allows.
  config.harvest.batch = 8
  config.harvest.dtype = "float32"  # on disk (GS 3.3.2)
  # Where stores go, one folder each, named by their content: "": below workdir;
  # else a folder or URL (s3://...) that several runs share.
  config.harvest.root = ""
  # Processes that share the work, each started with its own part.
  config.harvest.parts = 1
  config.harvest.part = 0

  config.train = ml_collections.ConfigDict()
  # An SAE reconstructs the site that it reads. A transcoder reads one site and
  # reconstructs another: site "mlp_in.12", target_site "mlp.12" (GS app. B). A
  # crosscoder reads and reconstructs several sites together: site
  # "res.5+res.12" (Gemma Scope 2).
  config.train.site = "res.12"
  config.train.target_site = ""  # "": no transcoder
  config.train.tokens = 4_000_000_000  # GS 3.1: 4B at width 2^14, 8B, 16B
  # "bucket": within buckets of consecutive rows (GS 3.1: ~10^6); "global": over
  # the whole store without replacement, in blocks of block_rows.
  config.train.shuffle = "bucket"
  config.train.bucket_rows = 1 << 20  # shuffled together
  config.train.block_rows = 256  # 1: a perfect shuffle, in single-row reads
  config.train.log_every = 100  # steps
  # Checkpoints: so often, by whichever comes first, and when asked to end.
  config.train.checkpoint_every = 5_000  # steps
  config.train.checkpoint_minutes = 10.0  # 0: not by time
  config.train.keep_checkpoints = 2  # the latest
  # "fvu" or "loss": keeps the checkpoint at which a batch's was lowest, too.
  config.train.keep_best = ""
  # Besides metrics.jsonl: "tensorboard" (needs tensorboardX), "wandb".
  config.train.loggers = ()
  # The members of the sweep, trained together on one stream. One SAE for each:
  # lambda of GS eq. 4. The paper names 6e-4 and 1e-3 only; which give the L0
  # that you want, experiments.calibrate finds.
  config.train.sparsity_coefficients = (3e-4, 6e-4, 1e-3)
  # Or one for each L0, held near it by the quadratic penalty of Gemma Scope 2
  # (eq. 5), whose lambda is not published: L0 ends above the target by the share
  # of it that the lambda of eq. 4 with the same L0 is of this one.
  config.train.target_l0s = ()
  config.train.target_l0_coefficient = 1e-2
  # And one for each of these: settings of the recipe that are not as below, as
  # ({"width": 2**15}, {"seed": 1, "learning_rate": 2e-4}).
  config.train.members = ()

  config.recipe = ml_collections.ConfigDict()  # see sae.config.Recipe
  config.recipe.family = "jumprelu"  # GS 2.2
  config.recipe.width = 2**14  # GS Table 1
  config.recipe.seed = 0  # added to config.seed for the initial weights
  config.recipe.batch_size = 4096  # GS 3.2
  config.recipe.learning_rate = 7e-5  # GS 3.2
  config.recipe.learning_rate_warmup_steps = 1_000  # GS 3.2, half cosine
  config.recipe.learning_rate_warmup_start = 0.1  # GS 3.2
  config.recipe.learning_rate_decay_share = 0.0  # GS: none
  config.recipe.bias_learning_rate_scale = 1.0  # GS: one rate for all
  config.recipe.adam_b1 = 0.0  # GS 3.2
  config.recipe.adam_b2 = 0.999  # GS 3.2
  config.recipe.adam_eps = 1e-8  # GS 3.2
  config.recipe.sparsity_coefficient = 6e-4  # where train names no other
  config.recipe.sparsity_warmup_steps = 10_000  # GS 3.2, linear
  config.recipe.sparsity_loss = "l0"  # GS 2.2, eq. 4
  config.recipe.target_l0 = 50.0  # of sparsity_loss "l0_target"
  config.recipe.frequency_coefficient = 0.0  # GS: none
  config.recipe.frequency_scale = 0.1
  config.recipe.bandwidth = 1e-3  # GS 3.2, footnote 5
  config.recipe.threshold_parameter = "raw"  # GS does not say
  config.recipe.threshold_init = 1e-3  # GS 3.2
  config.recipe.threshold_init_l0 = 0.0  # 0: off, as in GS
  config.recipe.start = ""  # a finished JumpReLU SAE to go on from; GS: none
  config.recipe.encoder_init = "transpose"  # GS 3.2
  config.recipe.bias_init = "zeros"  # GS 3.2
  config.recipe.pre_encoder_bias = True  # GS 3.2
  config.recipe.centre_inputs = False  # of a transcoder; GS: no
  config.recipe.normalise = "rms"  # GS 3.1: E||x||^2 = 1; app. B
  config.recipe.frozen = ()  # parameters that are not trained
  config.recipe.prefixes = ()  # widths of Matryoshka's dictionaries; GS: none
  config.recipe.skip = False  # of a transcoder (Gemma Scope 2)
  # Of other families: see configs/baselines.py.
  config.recipe.k = 50
  config.recipe.aux_k = 512
  config.recipe.aux_coefficient = 0.0
  config.recipe.dead_after_rows = 10_000_000
  config.recipe.gated_loss = "ri_l1"  # needs no resampling (2407.14435)
  # How steps are computed; what is learned changes by rounding only.
  config.recipe.matmul_precision = "highest"  # GS 3.3.2: 32-bit
  config.recipe.step = "auto"  # sparse where that is faster
  config.recipe.capacity = 0  # of a sparse step; 0: by the expected L0

  config.evaluate = ml_collections.ConfigDict()
  config.evaluate.sequences = 2048  # held out, of data.window tokens (GS 4.1)
  config.evaluate.stride = 1  # use every n-th held-out window
  config.evaluate.batch = 8  # sequences a forward pass
  config.evaluate.pca_components = 50  # of the PCA baseline
  config.evaluate.target_l0 = 50.0  # whose SAE is looked into:
  config.evaluate.latents = 36  # so many of its latents are described,
  config.evaluate.contexts = 6  # with so many top contexts each,
  config.evaluate.context_rows = 1 << 20  # found in so many rows of the store
  # Splice BOS and what else the token policy excludes, too. It never counts.
  config.evaluate.splice_special = False

  # Of experiments.evaluate --study only.
  config.studies = ml_collections.ConfigDict()
  # "statistics" of tokens need no model; "lm" is the one under study; "chat" is
  # behind an OpenAI-compatible endpoint, its key in OPENAI_API_KEY.
  config.studies.explainer = "statistics"
  config.studies.simulator = "statistics"
  config.studies.chat_url = ""  # such as https://api.openai.com/v1
  config.studies.chat_model = ""  # its name there
  config.studies.chat_requests_per_minute = 60.0
  config.studies.chat_dollars_per_million = ()  # (input, output) tokens
  config.studies.most_dollars = 0.0  # refuse to cost more; 0: no limit
  # A blinded sheet for people to rate so many latents of each SAE on, below
  # ratings/ of workdir; 0: none. And files of ratings that came back.
  config.studies.rated_latents = 0
  config.studies.ratings = ()
  # Subsets of The Pile: "hf:monology/pile-uncopyrighted" or "file:PATH"; "":
  # stand-ins from packages.
  config.studies.subset_source = ""
  config.studies.subset_sequences = 256  # of each subset
  # The instruction-tuned model: its source, and a fine-tune of it; "": that of
  # lm, and none.
  config.studies.instruct = ml_collections.ConfigDict()
  config.studies.instruct.source = ""
  config.studies.instruct.delta = ""
  config.studies.instruct.prompts = "mt_bench"  # or dialogue, or file:PATH
  config.studies.instruct.prompt_count = 80
  config.studies.instruct.per_prompt = 4  # rollouts of each
  config.studies.instruct.turns = 0  # of each prompt, at most; 0: all
  config.studies.instruct.new_tokens = 256  # of an answer, at most
  config.studies.instruct.temperature = 1.0  # GS 4.5
  return config
