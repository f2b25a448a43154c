package nspool_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The first example of the README is a program: it is built and run, with a stand-in for the docker command.
func TestTheReadmeExampleRuns(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	example := strings.SplitN(strings.SplitN(string(readme), "```go\n", 2)[1], "```", 2)[0]
	endpoint, pool, folder := endpointIn(t), newFakePool(), t.TempDir()
	server, err := pool.serve(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	write := func(name, text string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("docker", "#!/bin/sh\necho \"$@\" >\"$(dirname \"$0\")/asked\"\n")
	run := exec.Command("go", "run", write("main.go", example))
	run.Env = append(os.Environ(), "NSPOOL_ENDPOINT="+endpoint, "PATH="+folder+":"+os.Getenv("PATH"))
	words, err := run.CombinedOutput()
	if err != nil || !strings.Contains(string(words), "runs in container:nspool-fake-1-1-1") {
		t.Fatalf("%v: %s", err, words)
	}
	asked, err := os.ReadFile(filepath.Join(folder, "asked"))
	if err != nil || !strings.Contains(string(asked), "--network container:nspool-fake-1-1-1 ") {
		t.Errorf("%v: docker was asked %q", err, asked)
	}
	if doubts := pool.doubts(); len(doubts) != 1 || doubts[0] {
		t.Errorf("released %v", doubts)
	}
}
