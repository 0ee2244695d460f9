package identity

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestKeyFileIsMadeOnceAndReadBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "identity.key")
	key, created, err := LoadOrCreateKey(path)
	must(t, err)
	if !created {
		t.Fatal("a new key was not reported as created")
	}
	again, created, err := LoadOrCreateKey(path)
	must(t, err)
	if created || !again.Equals(key) {
		t.Fatal("the key changed on the second look")
	}
	_, err = CreateKey(path)
	wantErr(t, err, fs.ErrExist)
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Fatalf("the key has mode %04o", info.Mode().Perm())
	}
}

func TestManyStartsAtOnceAgreeOnOneKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "identity.key")
	keys := make([]string, 16)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			key, _, err := LoadOrCreateKey(path)
			if err != nil {
				t.Error(err)
				return
			}
			raw, _ := key.Raw()
			keys[i] = string(raw)
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Fatal("two keys")
		}
	}
}

func TestDamagedOrOpenKeyIsNamedAndKept(t *testing.T) {
	good := filepath.Join(t.TempDir(), "identity.key")
	_, err := CreateKey(good)
	must(t, err)
	text, err := os.ReadFile(good)
	must(t, err)
	comment, line, _ := strings.Cut(string(text), "\n")
	flipped := []byte(line)
	flipped[10] ^= 1

	cases := map[string]string{
		"empty":      "",
		"cut":        string(text[:len(text)/2]),
		"flipped":    comment + "\n" + string(flipped),
		"not base64": "!!!\n",
		"two keys":   string(text) + line,
		"too large":  strings.Repeat("#", maxKeyFile+1),
	}
	for name, content := range cases {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "identity.key")
			must(t, os.WriteFile(path, []byte(content), 0o600))
			_, _, err := LoadOrCreateKey(path)
			var damaged *DamagedError
			if !errors.As(err, &damaged) || damaged.Path != path {
				t.Fatalf("got %v", err)
			}
			if kept, _ := os.ReadFile(path); string(kept) != content {
				t.Fatal("the damaged file was touched")
			}
		})
	}

	must(t, os.Chmod(good, 0o640))
	_, err = LoadKey(good)
	var mode *ModeError
	if !errors.As(err, &mode) || !strings.Contains(err.Error(), "chmod 600 "+good) {
		t.Fatalf("got %v", err)
	}
}

func TestFailedWriteLeavesTheOldFileAndNoRubbish(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	must(t, WriteFile(path, []byte("old"), 0o600))
	must(t, WriteFile(path, []byte("new"), 0o600))
	if got, _ := os.ReadFile(path); string(got) != "new" {
		t.Fatalf("got %q", got)
	}
	taken := filepath.Join(dir, "taken") // a folder in the file's place makes the rename fail
	must(t, os.MkdirAll(filepath.Join(taken, "x"), 0o700))
	if err := WriteFile(taken, []byte("new"), 0o600); err == nil {
		t.Fatal("a folder was overwritten")
	}
	names, err := os.ReadDir(dir)
	must(t, err)
	if len(names) != 2 {
		t.Fatalf("left behind: %v", names)
	}
}

func TestStateFolderIsClosedToWritersAndMadeIfMissing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	must(t, MakeDir(dir))
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o700 {
		t.Fatalf("made with mode %04o", info.Mode().Perm())
	}
	must(t, os.Chmod(dir, 0o777))
	var mode *ModeError
	if err := MakeDir(dir); !errors.As(err, &mode) || !strings.Contains(err.Error(), "chmod 700 "+dir) {
		t.Fatalf("got %v", err)
	}
}
