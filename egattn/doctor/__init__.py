"""Doctor: is this machine fit to train and measure on?"""
