"""tmrl-bench: which way of pretraining and fine-tuning makes a robot policy learn fastest from reinforcement?"""
