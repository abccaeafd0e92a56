"""What tests share: models, servers, specifications."""
