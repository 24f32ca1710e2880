package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// files lists what a reader sees in a volume's folder: path, mode and content of each file, without kubelet's own names.
func files(t *testing.T, folder string) []string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		// The final slash makes WalkDir follow a link to a folder.
		err := filepath.WalkDir(filepath.Join(folder, e.Name())+"/.", func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() {
				found = append(found, describeFile(t, folder, path))
			}
			return nil
		})
		if info, statErr := os.Stat(filepath.Join(folder, e.Name())); err != nil || statErr == nil && !info.IsDir() {
			found = append(found, describeFile(t, folder, filepath.Join(folder, e.Name())))
		}
	}
	return found
}

func describeFile(t *testing.T, folder, path string) string {
	t.Helper()
	name, err := filepath.Rel(folder, path)
	info, statErr := os.Stat(path)
	text, readErr := os.ReadFile(path)
	if err := errors.Join(err, statErr, readErr); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s %o %s", name, info.Mode().Perm(), text)
}

func TestPayload(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "volume")
	file := func(text string, mode fs.FileMode) payloadFile { return payloadFile{[]byte(text), mode} }
	for _, tt := range []struct {
		name string
		p    payload
		want []string
	}{
		{"nothing", payload{}, nil},
		{"files", payload{"a": file("1", 0o644), "dir/b": file("2", 0o400), "dir/c": file("3", 0o644)}, []string{"a 644 1", "dir/b 400 2", "dir/c 644 3"}},
		{"another text", payload{"a": file("9", 0o644), "dir/b": file("2", 0o400)}, []string{"a 644 9", "dir/b 400 2"}},
		{"another mode", payload{"a": file("9", 0o600)}, []string{"a 600 9"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range 2 {
				if err := tt.p.write(folder); err != nil {
					t.Fatal(err)
				}
				if got := files(t, folder); !slices.Equal(got, tt.want) {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			}
			if versions, err := filepath.Glob(filepath.Join(folder, dataFolder)); err != nil || len(versions) != 1 {
				t.Errorf("versions kept: %q, %v, want one", versions, err)
			}
		})
	}
}

// TestPayloadThatIsTheSame holds that a reader's open folder stays when nothing has changed.
func TestPayloadThatIsTheSame(t *testing.T) {
	folder := t.TempDir()
	p := payload{"a": {[]byte("1"), 0o644}}
	version := func() string {
		t.Helper()
		if err := p.write(folder); err != nil {
			t.Fatal(err)
		}
		link, err := os.Readlink(filepath.Join(folder, dataLink))
		if err != nil {
			t.Fatal(err)
		}
		return link
	}
	if before, after := version(), version(); before != after {
		t.Errorf("%s was replaced by %s", before, after)
	}
}

func TestContents(t *testing.T) {
	pod := testPod("web", "true")
	pod.Labels = map[string]string{"b": "2", "a": `"1"`}
	from := contents{testConfig(), pod, podFacts{}}
	keys, none := corev1.LocalObjectReference{Name: "keys"}, corev1.LocalObjectReference{Name: "none"}
	downward := []corev1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}}
	for _, tt := range []struct {
		name   string
		volume corev1.VolumeSource
		want   string
	}{
		{"secret", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "keys", DefaultMode: new(int32(0o440))}}, "password 440 xyzzy, user 440 joe"},
		{"items", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "keys", Items: []corev1.KeyToPath{
			{Key: "user", Path: "id/name", Mode: new(int32(0o400))},
		}}}, "id/name 400 joe"},
		{"missing item", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "keys", Items: []corev1.KeyToPath{{Key: "x", Path: "y"}}}},
			`secret default/keys has no key "x"`},
		{"missing item, optional", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "keys", Optional: new(true), Items: []corev1.KeyToPath{{Key: "x", Path: "y"}}}}, ""},
		{"config map", corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}, "colour 644 blue"},
		{"missing", corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: none}},
			`read configMap default/none: configmaps "none" not found`},
		{"missing, optional", corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: none, Optional: new(true)}}, ""},
		{"downward", corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: downward}}, "labels 644 a=\"\\\"1\\\"\"\nb=\"2\"\n"},
		{"projected", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: new(int32(0o600)), Sources: []corev1.VolumeProjection{
			{Secret: &corev1.SecretProjection{LocalObjectReference: keys, Items: []corev1.KeyToPath{{Key: "user", Path: "user"}}}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: downward}},
		}}}, "labels 600 a=\"\\\"1\\\"\"\nb=\"2\"\n, user 600 joe"},
		{"unsupported", corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}},
			"the lab's node agent has only secret, configMap, emptyDir, downwardAPI and projected volumes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := from.of(t.Context(), &corev1.Volume{Name: "v", VolumeSource: tt.volume})
			var all []string
			for name, file := range p {
				all = append(all, fmt.Sprintf("%s %o %s", name, file.mode, file.data))
			}
			slices.Sort(all)
			got := strings.Join(all, ", ")
			if err != nil {
				got = err.Error()
			}
			if got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

// TestVolumes has two containers share an emptyDir, and read a Secret at a path that the machine has not.
func TestVolumes(t *testing.T) {
	b := startBed(t)
	secrets := b.client.CoreV1().Secrets("default")
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "keys"}, Data: map[string][]byte{"user": []byte("joe")}}
	pod := testPod("seer", `cat /etc/shop-test/keys/user; echo; cat /shop-test/shared/note; stat -f -c %T /shop-test/shared; echo "$(touch /etc/shop-test/keys/x 2>&1)";
		ls /etc/shop-test; grep -c . /etc/passwd >/dev/null && echo machine; cat /motd-test; hostname; exec sleep 1000`)
	writer := shell("first", "echo hello >/shop-test/shared/note; echo message >/shop-test/shared/motd")
	shared := corev1.VolumeMount{Name: "shared", MountPath: "/shop-test/shared"}
	writer.VolumeMounts = []corev1.VolumeMount{shared}
	pod.Spec.InitContainers = []corev1.Container{writer}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{
		shared, {Name: "keys", MountPath: "/etc/shop-test/keys"}, {Name: "kube-api-access-x7zzq", MountPath: "/var/run/secrets"},
		{Name: "shared", MountPath: "/motd-test", SubPath: "motd", ReadOnly: true},
	}
	pod.Spec.Containers[0].ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
		Exec: &corev1.ExecAction{Command: []string{"test", "-e", "/etc/shop-test/keys/user"}},
	}}
	pod.Spec.Volumes = []corev1.Volume{
		{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
		{Name: "keys", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "keys"}}},
	}
	b.create(pod)
	b.status("seer", func(s corev1.PodStatus) bool {
		if len(s.ContainerStatuses) == 0 {
			return false
		}
		w := s.ContainerStatuses[0].State.Waiting
		return w != nil && w.Reason == reasonConfig && w.Message == `container "main": volume "keys": read secret default/keys: secrets "keys" not found`
	})
	if _, err := secrets.Create(t.Context(), secret, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	b.status("seer", ready)
	b.logged("seer", "joe\nhello\ntmpfs\ntouch: cannot touch '/etc/shop-test/keys/x': Read-only file system\nkeys\nmachine\nmessage\nseer\n")
	for _, path := range []string{"/etc/shop-test", "/shop-test", "/motd-test"} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s was made on the machine", path)
		}
	}
	memory := filepath.Join(filepath.Dir(b.logFile("seer")), volumesDir, "shared")
	if _, err := os.Stat(filepath.Join(memory, "note")); err != nil {
		t.Error(err)
	}
	b.delete("seer", 0)
	b.gone(filepath.Dir(b.logFile("seer")))
}

// TestVolumeFollows holds that a change of the object is seen by a container that runs.
func TestVolumeFollows(t *testing.T) {
	b := startBed(t)
	maps := b.client.CoreV1().ConfigMaps("default")
	settings := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}, Data: map[string]string{"colour": "blue", "size": "1"}}
	if _, err := maps.Create(t.Context(), settings, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := testPod("seer", `while :; do echo $(ls /settings-test) $(cat /settings-test/*); sleep 0.1; done`)
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "settings", MountPath: "/settings-test"}}
	pod.Spec.Volumes = []corev1.Volume{{Name: "settings", VolumeSource: corev1.VolumeSource{
		ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}},
	}}}
	b.create(pod)
	b.logged("seer", "colour size blue1\n")
	settings.Data = map[string]string{"colour": "red"}
	if _, err := maps.Update(t.Context(), settings, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	b.logged("seer", "\ncolour red\n")
	if err := maps.Delete(t.Context(), "settings", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.hasEvent("FailedMount", `configmaps "settings" not found`)
	b.stop()
	if log, err := os.ReadFile(b.logFile("seer")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("log of a pod after its agent's end: %q, %v", log, err)
	}
}
