import pytest

from gemmascope_jax.data.serving import access


def test_token_of_the_environment_and_of_a_file(monkeypatch, tmp_path):
  monkeypatch.delenv(access.VARIABLE, raising=False)
  assert access.read_token() is None
  monkeypatch.setenv(access.VARIABLE, "secret\n")
  assert access.read_token() == "secret"
  file = tmp_path / "token"
  file.write_text(" other \n")
  assert access.read_token(file) == "other"


@pytest.mark.parametrize(
  "content, says",
  [
    (b"", "is empty"),
    ("gehéim".encode(), "expected printable ASCII"),
    (b"two\nlines", "expected printable ASCII"),
    (b"\xff\xfe", "expected printable ASCII"),
  ],
)
def test_tokens_that_no_header_carries(tmp_path, content, says):
  (tmp_path / "token").write_bytes(content)
  with pytest.raises(ValueError, match=f"token file .*{says}"):
    access.read_token(tmp_path / "token")


def test_a_file_that_is_not_there(tmp_path):
  with pytest.raises(FileNotFoundError, match="token file .*missing"):
    access.read_token(tmp_path / "missing")
