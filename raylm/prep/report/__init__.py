"""What a prepared dataset says of itself: manifest, card, HTML page, histograms, and raylm inspect."""
