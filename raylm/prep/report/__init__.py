"""What a prepared data set says of itself: manifest, card, HTML page, histograms, and raylm inspect."""
