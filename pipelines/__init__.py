"""What is done with a trained model, or with a config before there is one."""
